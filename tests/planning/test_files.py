"""Plans as files: what is written is what is read, and every mistake is one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fxfuse.errors import FxfuseError, InputError
from fxfuse.planning.choose import plan
from fxfuse.planning.files import read_plan, write_plan
from tests.planning.made import analysis, power, summed


def made() -> Any:
    return plan(analysis(5, 3), max_kl=0.05, measure=summed(power), latency={1: 1.0, 2: 1.5, 3: 2.0})


def test_a_plan_comes_back_as_it_was(tmp_path) -> None:
    original = made()
    write_plan(tmp_path / "plan.json", original)
    assert read_plan(tmp_path / "plan.json") == original
    assert read_plan(str(tmp_path / "plan.json")) == original
    assert read_plan(json.loads(original.to_json())) == original
    assert read_plan(original.to_dict()) == original
    assert read_plan(original) is original
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_of_groups_alone_will_do() -> None:
    data = {
        "kind": "fxfuse plan", "format": 1,
        "id": {"hidden_size": 64, "blocks": [["a.0", 96], ["a.1", 96]]},
        "groups": [{"blocks": ["a.0", "a.1"]}],
    }  # fmt: skip
    found = read_plan(data)
    assert found.groups[0].blocks == ("a.0", "a.1")
    assert (found.front, found.kl, found.notes) == ((), None, ())


def changed(**changes: Any) -> dict[str, Any]:
    data = json.loads(made().to_json()) | changes
    return {name: value for name, value in data.items() if value is not ...}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({}, "The plan is no plan: it says no kind; make one with fxfuse plan."),
        (
            {"kind": "fxfuse analysis"},
            "The plan is no plan: it is of the kind 'fxfuse analysis'; make one with",
        ),
        (changed(format=2), "The plan is of format 2, and this fxfuse reads format 1: make it again."),
        (changed(format=...), "The plan is of format None, and this fxfuse reads format 1: make it again."),
        (changed(groups=...), "The plan cannot be used: 'groups' is missing."),
        (changed(id=...), "The plan cannot be used: 'id' is missing."),
        (changed(id={"hidden_size": 64}), "The plan cannot be used: 'blocks' is missing."),
        (
            changed(id={"hidden_size": "x", "blocks": []}),
            "The plan cannot be used: invalid literal for int()",
        ),
        (
            changed(groups=[{"block": []}]),
            "The plan cannot be used: a group has no 'block', only blocks, kl",
        ),
        (
            changed(groups=[{}]),
            "The plan cannot be used: the blocks of a group must be a list of names, not None.",
        ),
        (
            changed(groups=[{"blocks": "a.0"}]),
            "The plan cannot be used: the blocks of a group must be a list of names, not 'a.0'.",
        ),
        (
            changed(groups=[{"blocks": [1, 2]}]),
            "The plan cannot be used: the blocks of a group must be a list of names, not [1, 2].",
        ),
        (changed(groups=[["a.0"]]), "The plan cannot be used: a group must be a JSON object, not ['a.0']."),
        (changed(groups=3), "The plan cannot be used: 'int' object is not iterable."),
        (
            changed(front=[{"length": 3}]),
            "The plan cannot be used: a point of the front has no 'length', only lengths",
        ),
    ],
)
def test_what_is_no_plan(data: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        read_plan(data)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "There is no plan file {path}: check the path."),
        ("a: 3", "{path} is no plan: it is not JSON; make one with fxfuse plan."),
        ("\xff", "{path} is no plan: it is not JSON; make one with fxfuse plan."),
        ("[]", "{path} is no plan: it holds no JSON object; make one with fxfuse plan."),
        (
            '{"kind": "fxfuse plan", "format": 7}',
            "The plan {path} is of format 7, and this fxfuse reads format 1",
        ),
    ],
)
def test_what_is_no_file_of_a_plan(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=re.escape(sentence.format(path=path))):
        read_plan(path)


def test_what_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_plan(tmp_path)
    with pytest.raises(InputError, match="plan must be a file, a dict or a Plan, not int."):
        read_plan(3)  # type: ignore[arg-type]
    with pytest.raises(FxfuseError, match=r"The plan .+ cannot be written \(No such file or directory\)"):
        write_plan(tmp_path / "gone" / "plan.json", made())
