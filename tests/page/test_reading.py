"""The parts from their JSON files, and every sentence about a file that is none."""

import dataclasses
import json
import re

import pytest

from fxfuse import write_page
from fxfuse.cli import main
from fxfuse.errors import InputError
from fxfuse.page.reading import decode, read_parts
from fxfuse.report import Report
from tests.page import sample


@pytest.fixture
def files(tmp_path):
    parts = sample.demo()
    found = {name: tmp_path / f"{name}.json" for name in parts}
    for name in ("analysis", "plan", "report"):
        found[name].write_text(parts[name].to_json())
    rows = [{"name": stage.name, "loss": stage.loss} for stage in parts["stages"]]
    found["stages"].write_text(json.dumps({"stages": rows}))
    return found


def test_files_give_what_was_written(files):
    parts = sample.demo()
    found = read_parts(reversed(files.values()))
    assert found.analysis == parts["analysis"]
    assert found.plan == parts["plan"]
    assert found.report == parts["report"]
    assert [stage.name for stage in found.stages] == [stage.name for stage in parts["stages"]]


def test_a_file_in_place_of_an_object(files, tmp_path):
    by_file = write_page(tmp_path / "a.html", **files).read_text()
    parts = sample.demo() | {"stages": str(files["stages"])}
    assert write_page(tmp_path / "b.html", **parts).read_text() == by_file


def test_the_command_writes_the_page_and_says_where(files, tmp_path, capsys):
    page = tmp_path / "page.html"
    arguments = [str(files["plan"]), str(files["analysis"]), "-o", str(page), "--title", "Mine"]
    assert main(["page", *arguments, "--command", "make it so"]) == 0
    assert capsys.readouterr().out == f"page: {page}\n"
    text = page.read_text()
    assert "<h1>Mine</h1>" in text
    assert "make it so" in text
    assert f"fxfuse page {files['plan']}" in text


def test_a_plan_for_another_model_is_refused(tmp_path):
    parts = sample.demo()
    other = dataclasses.replace(
        parts["plan"], id=dataclasses.replace(parts["plan"].id, hidden_size=parts["plan"].id.hidden_size + 8)
    )
    with pytest.raises(InputError, match="The plan is for another model than the analysis"):
        write_page(tmp_path / "p.html", analysis=parts["analysis"], plan=other)
    assert not (tmp_path / "p.html").exists()


def test_fields_of_a_newer_version_are_left_out(files):
    data = json.loads(files["report"].read_text())
    data["newer"] = data["groups"][0]["newer"] = 1
    assert decode(Report, data, "r.json") == sample.demo()["report"]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "x.json is not JSON: give the files that fxfuse wrote."),
        ("[1]", "x.json is no analysis, plan, report or stages of fxfuse: give the JSON files it wrote."),
        ('{"kind": "fxfuse analysis"}', "x.json is an analysis of format None"),
        ('{"kind": "fxfuse plan", "format": 1}', "'id' is missing"),
        (
            '{"ffn_blocks": 1, "groups": 3, "model": "m"}',
            "x.json cannot be read: groups must be a list, not 3.",
        ),
        ('{"ffn_blocks": 1, "groups": [3], "model": "m"}', "groups[0] must be an object, not 3."),
        ('{"ffn_blocks": 1, "groups": [{}], "model": "m"}', "groups[0] lacks blocks, intermediate_size, "),
        ('{"ffn_blocks": 1, "groups": []}', "x.json cannot be read: it lacks model."),
        ('{"ffn_blocks": true, "groups": [], "model": "m"}', "ffn_blocks must be a whole number, not True."),
        ('{"ffn_blocks": 1, "groups": [], "model": 2}', "model must be a text, not 2."),
        ('{"stages": ["x"]}', "stage 1 must be a row of name, "),
    ],
)
def test_a_file_that_is_none_of_these(tmp_path, text, sentence):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=re.escape(sentence)):
        read_parts([tmp_path / "x.json"])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"x\.json cannot be read: No such file or directory"):
        read_parts([tmp_path / "x.json"])


def test_one_file_of_each_kind(files):
    with pytest.raises(InputError, match="is a second plan: give one file of each kind"):
        read_parts([files["plan"], files["plan"]])


def test_a_part_in_the_place_of_another(files, tmp_path):
    with pytest.raises(InputError, match="is no plan: it holds an analysis"):
        write_page(tmp_path / "p.html", plan=files["analysis"])
    with pytest.raises(InputError, match="holds no stages: it holds a report"):
        write_page(tmp_path / "p.html", stages=files["report"])
    with pytest.raises(InputError, match="plan must be a file or an object of fxfuse, not Analysis"):
        write_page(tmp_path / "p.html", plan=sample.analysis())


def test_the_page_never_replaces_what_it_was_made_of(files):
    before = files["plan"].read_bytes()
    with pytest.raises(InputError, match="would overwrite"):
        write_page(files["plan"], plan=files["plan"])
    assert files["plan"].read_bytes() == before
