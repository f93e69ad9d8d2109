"""The page as text: what is there, what is left out, what is refused."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fxfuse import write_page
from fxfuse.divergence import Divergence
from fxfuse.errors import FxfuseError, InputError
from fxfuse.recovery.records import GroupRecovery, Recovered, Trial
from tests.page import sample

VOID = {"meta", "link", "br"}


class Outline(HTMLParser):
    """Texts by the id of their section; complains about tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.ids, self.texts, self.section = [], [], {}, "head"
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.section = found["id"] if tag == "section" else self.section
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.setdefault(self.section, []).append(data)


def outline(path) -> dict[str, str]:
    found = Outline(path.read_text(encoding="utf-8"))
    assert len(found.ids) == len(set(found.ids))
    return {name: " ".join(texts) for name, texts in found.texts.items()}


def test_the_page_holds_every_section(tmp_path):
    parts = sample.demo()
    found = outline(
        write_page(tmp_path / "p.html", **parts, recovery=recovered(), command="fxfuse fuse demo.onnx")
    )
    assert list(found) == [
        "head", "stages", "stream", "loss", "front", "dependency", "attention", "groups", "recovery",
        "misses", "notes", "reproduce",
    ]  # fmt: skip
    assert "7 FFNs that stood in a row run as 3 wide ones, at a KL divergence of 0.00231" in found["head"]
    assert "18 → 14" in found["head"]
    assert "1.36 times as fast" in found["head"]
    assert "1.323 ± 0.004" in found["stages"]
    assert "Fusing turns 18 updates in a row into 14." in found["stream"]
    assert "Spearman 0.99" in found["loss"]
    assert "chosen: 3+2+2" in found["front"]
    assert "budget 0.004" in found["front"]
    assert "model.layers.4-6.mlp" in found["groups"]
    assert "98.7 %" in found["groups"]
    assert "model.layers.0-1.mlp" in found["misses"]
    for command in ("fxfuse analyze", "fxfuse plan", "fxfuse fuse demo.onnx"):
        assert command in found["reproduce"]
    assert "2.13.0" in found["reproduce"]
    assert "seed 0" in found["reproduce"]


def recovered() -> Recovered:
    trials = (Trial("naive", None, 0.02, None), Trial("h", 1e-3, 0.008, 0.0005))
    group = GroupRecovery(
        ("model.layers.4.mlp", "model.layers.5.mlp"), "fit", "h", "it wins on the held-out tokens",
        8000, 2000, 1024, 0.02, 0.008, 1e-3, 0.004, 0.001, "direct", trials,
    )  # fmt: skip
    before, after = (Divergence(kl, kl / 20, 0.98, 8192) for kl in (0.0044, 0.0011))
    return Recovered([None], [group], before, after)


def test_recovery_tells_what_was_tried_and_taken_back(tmp_path):
    told = sample.demo()["report"]
    told.groups[0] = replace(told.groups[0], recovery=recovered().groups[0])
    for given in ({"recovery": recovered()}, {"recovery": recovered().groups}, {"report": told}):
        found = outline(write_page(tmp_path / "p.html", **given))["recovery"]
        assert "75.0 %" in found
        assert "it wins on the held-out tokens" in found
        assert "0.0080 ± 0.0005" in found
    assert (
        "All groups together: KL 0.0044"
        in outline(write_page(tmp_path / "p.html", recovery=recovered()))["recovery"]
    )


ANALYZE = ["stream", "loss", "dependency", "attention"]


@pytest.mark.parametrize(
    "given, missing",
    [
        (["analysis"], ["front", "recovery", "groups"]),
        (["plan"], ["loss", "dependency", "attention", "recovery"]),
        (["report"], ["loss", "front", "dependency", "attention", "recovery"]),
        (["stages"], [*ANALYZE, "front", "recovery", "groups"]),
    ],
)
def test_one_sentence_for_each_part_that_is_missing(tmp_path, given, missing):
    parts = sample.demo()
    found = outline(write_page(tmp_path / "p.html", **{name: parts[name] for name in given}))
    assert not set(missing) & set(found)
    sentences = {
        "stream": "The residual stream is drawn from the file that fxfuse analyze writes.",
        "loss": "Loss against group length comes from fxfuse analyze, which measures every segment.",
        "front": "The Pareto front comes from fxfuse plan.",
        "dependency": "The dependency matrix comes from fxfuse analyze.",
        "attention": "The importance of each attention comes from fxfuse analyze.",
        "recovery": "What recovery takes back comes from fxfuse fuse with --recover.",
        "groups": "The table of groups comes from fxfuse plan, all its figures from the report of",
    }
    told = {name for name, sentence in sentences.items() if sentence in found["missing"]}
    assert told == set(missing)


def test_an_analysis_without_figures_leaves_its_charts_out(tmp_path):
    found = sample.analysis()
    found.segments = [replace(s, kl=None, predicted_kl=None) for s in found.segments]
    found.attention = [replace(s, kl=math.nan, cosine=math.nan) for s in found.attention]
    found.dependency, found.versions, found.command = None, {}, ""
    told = outline(write_page(tmp_path / "p.html", analysis=found))
    assert set(told) == {"head", "stream", "notes", "reproduce", "missing"}
    assert "The command was not recorded." in told["reproduce"]
    assert "Versions were not recorded." in told["reproduce"]
    assert "Nothing is fused in this report." in told["head"]


def test_attention_without_kl_has_one_panel(tmp_path):
    found = sample.analysis()
    found.attention = [replace(score, kl=None, kl_error=None) for score in found.attention]
    told = outline(write_page(tmp_path / "p.html", analysis=found))["attention"]
    assert "KL without it, nats/token (log)" not in told
    assert "1 − cosine of the stream before and after (log)" in told


def test_a_front_with_times_lies_over_latency(tmp_path):
    given = sample.huge()
    told = outline(write_page(tmp_path / "p.html", plan=given["plan"]))["front"]
    assert "Loss against latency" in told
    assert "latency, ms" in told


def test_a_plan_says_what_would_be(tmp_path):
    told = outline(write_page(tmp_path / "p.html", plan=sample.demo()["plan"]))
    assert "7 FFNs that stood in a row would run as 3 wide ones" in told["head"]
    assert "The planned groups" in told["groups"]


def test_versions_that_differ_stand_beside_each_other(tmp_path):
    parts = sample.demo()
    parts["plan"].versions = {**sample.VERSIONS, "torch": "2.14.1"}
    told = outline(write_page(tmp_path / "p.html", **parts))["reproduce"]
    assert "analysis plan report" in told
    assert "2.14.1" in told


def test_names_stay_text(tmp_path):
    page = write_page(tmp_path / "p.html", **sample.hostile())
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<(script|i|u|b)>", text)
    assert not [each for each in text if not each.isprintable() and each != "\n"]
    told = outline(page)
    assert "\\x1b[31m\\x202e" in told["groups"]
    assert "<b>bold</b>\\x0a\\x00" in told["notes"]
    assert 'The model was not fused: it said "no" & left' in told["notes"]
    assert "The figures of fusing are on random inputs: give real ones to judge quality." in told["notes"]


def test_a_title_of_ones_own(tmp_path):
    told = outline(write_page(tmp_path / "p.html", stages=sample.stages(), title="Llama & friends"))
    assert "Llama & friends" in told["head"]


@pytest.mark.parametrize(
    "row", [sample.stages()[2], {"name": "healed", "loss": 1.5, "depth": 3}, ("healed", 1.5, None, 0.25)]
)
def test_stages_are_records_dicts_or_rows(tmp_path, row):
    assert "heal" in outline(write_page(tmp_path / "p.html", stages=[row]))["stages"]


@pytest.mark.parametrize(
    "row, sentence",
    [
        ({"name": "a", "los": 1}, "stage 1 has no field 'los': its fields are name, loss, "),
        ("name", "stage 1 must be a row of name, loss, "),
        (tuple("123456789"), "stage 1 must be a row of name, loss, "),
        ({"loss": 1.0}, "stage 1 cannot be read: it lacks name."),
        (("a", "high"), "stage 1 cannot be read: loss must be a number, not 'high'."),
    ],
)
def test_a_stage_that_is_none(tmp_path, row, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        write_page(tmp_path / "p.html", stages=[row])
    assert list(tmp_path.iterdir()) == []


def test_there_must_be_something_to_show(tmp_path):
    for nothing in ({}, {"stages": []}):
        with pytest.raises(InputError, match="There is nothing to show: give an analysis, a plan, a report"):
            write_page(tmp_path / "p.html", **nothing)


def test_an_earlier_page_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "p.html"
    for _ in range(2):
        write_page(path, stages=sample.stages())
    precious = tmp_path / "notes.html"
    precious.write_text("<html>mine</html>")
    with pytest.raises(InputError, match=r"would overwrite .*notes\.html, which is no page of fxfuse"):
        write_page(precious, stages=sample.stages())
    assert precious.read_text() == "<html>mine</html>"
    with pytest.raises(InputError, match="There is no folder .*none for the page: make it first"):
        write_page(tmp_path / "none" / "p.html", stages=sample.stages())
    with pytest.raises(InputError, match="The page cannot be .*, which is a folder"):
        write_page(tmp_path, stages=sample.stages())


def test_a_page_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = write_page(tmp_path / "p.html", stages=sample.stages())
    before = path.read_bytes()
    monkeypatch.setattr("fxfuse.report_file.os.replace", full)
    with pytest.raises(
        FxfuseError, match=r"The page .*p\.html cannot be written \(No space left on device\)"
    ):
        write_page(path, stages=sample.stages()[:1])
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["p.html"]
