"""The pipeline with a target: groups are halved, dropped and told, on figures that are given."""

from pathlib import Path

import onnx
import pytest

from fxfuse.budget import Budget
from fxfuse.frontends.onnx_file import OnnxFile
from fxfuse.inputs import draw_inputs, specs_of
from fxfuse.pipeline import fuse
from fxfuse.report import Report, WholeTiming
from fxfuse.timing.cache import Cache
from fxfuse.timing.choosing import Timing, Whole
from fxfuse.timing.contest import BASELINE
from fxfuse.timing.target import Target
from fxfuse.timing.timer import Timer
from tests.small_onnx import VOCAB, Small
from tests.timing.fakes import PACE, FakeStage, Speed, speeds


@pytest.fixture
def front(tmp_path: Path) -> OnnxFile:
    model = Small(layers=4).model()
    samples = draw_inputs(specs_of(model), 0, VOCAB, sequence=8)
    return OnnxFile(model, tmp_path, samples, tmp_path, "out.onnx", "cpu")


def run(front: OnnxFile, speed: Speed, whole: Whole | None = None) -> tuple[object, Report]:
    report = Report(model="small")
    timer = Timer(Target((1, 8)), stage=FakeStage(speed), cache=Cache(None), pace=PACE)
    fused = fuse(front, Budget(min_sqnr=None), report, timing=Timing(timer, whole))
    return fused, report


def by_length(length: int) -> Speed:
    """Groups of up to so many blocks are twice as fast, longer ones are slower."""
    return lambda shape, name, tokens: (
        1.0 if name == BASELINE else 0.5 if len(shape.widths) <= length else 1.5
    )


def test_the_form_that_is_fastest_is_written(front: OnnxFile):
    fused, report = run(front, lambda shape, name, tokens: 0.5 if name.startswith("two/2") else 1.0)
    assert isinstance(fused.model, onnx.ModelProto)
    (group,) = report.groups
    assert group.form == group.timing.form
    assert group.form.startswith("two/2")
    assert group.timing.fused_ms == {1: 500.0, 8: 500.0}
    assert sum(node.op_type == "MatMul" for node in fused.model.graph.node) == 6 + 1
    assert "1,000 -> 500 (2.00x)" in str(report)


def test_a_group_that_does_not_pay_is_halved(front: OnnxFile):
    _, report = run(front, by_length(2))
    assert [len(group.blocks) for group in report.groups] == [2, 2]
    assert not report.misses
    (note,) = report.notes
    assert note.startswith(
        "fusing model.layers.0-3.mlp takes 1,500 ms at 1 token on cpu, sequential 1,000 ms"
    )
    assert note.endswith("its halves were timed")


def test_what_pays_nowhere_stays_sequential_with_its_figures(front: OnnxFile):
    fused, report = run(front, by_length(1))
    assert fused is None
    assert not report.groups
    assert [miss.where for miss in report.misses] == [f"model.layers.{layer}.mlp" for layer in range(4)]
    assert report.misses[0].reason.startswith("left sequential: fusing model.layers.0-1.mlp takes")


def test_a_whole_model_that_is_slower_loses_the_group_that_gains_least(front: OnnxFile):
    found = [[WholeTiming(1, 10.0, 12.0, 0.83)], [WholeTiming(1, 10.0, 9.0, 1.11)]]

    fused, report = run(front, by_length(2), lambda _: found.pop(0))
    assert fused is not None
    assert len(report.groups) == 1
    assert report.latency == [WholeTiming(1, 10.0, 9.0, 1.11)]
    reason = "left sequential: the whole model takes 12 ms at 1 token on cpu, unfused 10 ms"
    assert [miss.reason for miss in report.misses] == [reason, reason]


def test_nothing_is_fused_where_the_whole_model_stays_slower(front: OnnxFile):
    fused, report = run(front, speeds(two=0.5), lambda _: [WholeTiming(1, 10.0, 12.0, 0.83)])
    assert fused is None
    assert (report.groups, report.latency) == ([], [])


def test_a_whole_model_that_cannot_be_timed_is_told(front: OnnxFile):
    fused, report = run(front, speeds(two=0.5), lambda _: "no memory")
    assert fused is not None
    assert report.notes == ["the whole model was not timed: no memory"]
