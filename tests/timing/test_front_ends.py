"""The same target through torch.compile, fxfuse.fuse and the command line, on figures that are given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch.export import ExportedProgram

import fxfuse
from fxfuse import cli
from fxfuse.timing import timer, using, whole
from fxfuse.timing.target import Target
from tests import families
from tests.small_onnx import Small
from tests.timing.fakes import PACE, FakeStage, Speed, speeds


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[Speed], list[tuple[Any, ...]]]:
    """given(speed): both stages are of that speed; returns what they are made with."""
    monkeypatch.setenv("FXFUSE_CACHE", "")
    monkeypatch.setattr(timer, "Pace", lambda **_: PACE)

    def install(speed: Speed) -> list[tuple[Any, ...]]:
        made: list[tuple[Any, ...]] = []

        def stage(*arguments: Any) -> FakeStage:
            made.append(arguments)
            return FakeStage(speed)

        monkeypatch.setattr(timer, "OnnxStage", stage)
        monkeypatch.setattr(timer, "TorchStage", stage)
        monkeypatch.setattr(whole.OnnxWhole, "__call__", lambda *_: "figures are given")
        return made

    return install


def test_torch_compile_times_as_its_inner_backend_compiles(
    given: Callable[[Speed], list[Any]], dynamo_graph: Callable[..., tuple[torch.fx.GraphModule, list[Any]]]
):
    made = given(speeds(packed=0.5))
    graph, inputs = dynamo_graph("llama")
    options = {"target": (1, 8), "min_sqnr": None, "inner": "eager", "inner_options": {"depth": 1}}
    with torch.no_grad():
        fxfuse.backend(graph, inputs, options=options)
    report = fxfuse.reports()[-1]
    assert {group.form for group in report.groups} == {"packed"}
    assert made[0] == (Target((1, 8)), "eager", {"depth": 1})
    assert any("the whole model was not timed" in note for note in report.notes)


def test_torch_compile_with_a_callable_inside_is_not_timed(
    given: Callable[[Speed], list[Any]], dynamo_graph: Callable[..., tuple[torch.fx.GraphModule, list[Any]]]
):
    made = given(speeds(packed=0.5))
    options = {"target": 1, "min_sqnr": None, "inner": lambda module, inputs: module}
    with torch.no_grad():
        fxfuse.backend(*dynamo_graph("llama"), options=options)
    assert not made
    assert any(note.startswith("nothing was timed") for note in fxfuse.reports()[-1].notes)


def test_a_target_that_makes_no_sense_is_told_at_once():
    with pytest.raises(fxfuse.InputError, match="from 1 to"):
        fxfuse.backend(None, [], options={"target": 0})
    with pytest.raises(fxfuse.InputError, match="from 1 to"):
        fxfuse.fuse(None, [], target=0)
    with pytest.raises(fxfuse.InputError, match="from 1 to"):
        fxfuse.fuse_onnx("nowhere.onnx", target=0)
    with pytest.raises(fxfuse.InputError, match="from 1 to"):
        fxfuse.export_onnx(torch.nn.Linear(1, 1).eval(), (), "nowhere.onnx", target=0)


def test_programs_stay_as_they_are_where_nothing_pays(
    given: Callable[[Speed], list[Any]], exported_program: Callable[..., ExportedProgram]
):
    given(lambda shape, name, tokens: 1.0 if name == "sequential" else 1.5)
    program = exported_program("llama")
    same, report = fxfuse.fuse(program, (families.example("llama"),), target=1, min_sqnr=None)
    assert same is program
    assert not report.groups
    assert any("takes 1,500 ms at 1 token on cpu" in miss.reason for miss in report.misses)


def test_the_mode_of_torch_compile_is_written_out():
    target = Target((1,), "cuda", cuda_graphs=True)
    assert using._inner_options(target, "inductor", None, {"a": 1}) == {"triton.cudagraphs": True, "a": 1}
    assert using._inner_options(Target(), "inductor", "reduce-overhead", None) == {"triton.cudagraphs": True}
    assert using._inner_options(Target(), "eager", None, None) == {}


def test_the_command_line_fuses_for_a_target(
    given: Callable[[Speed], list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made = given(speeds(two=0.5))
    onnx.save(Small(layers=3).model(), tmp_path / "model.onnx")
    words = ["fuse", str(tmp_path / "model.onnx"), "--no-budget", "--provider", "cpu"]
    assert cli.main([*words, "--target-tokens", "1,8", "--target-threads", "2"]) == 0
    assert made[0] == (Target((1, 8), threads=2),)
    told = capsys.readouterr().out
    assert "1,000 -> 500 (2.00x)" in told
    assert "note: the whole model was not timed: figures are given" in told


def test_what_is_quantised_afterwards_is_timed_so(given: Callable[[Speed], list[Any]], tmp_path: Path):
    given(speeds(two=0.5))
    onnx.save(Small(layers=3).model(), tmp_path / "model.onnx")
    report = fxfuse.fuse_onnx(
        tmp_path / "model.onnx", provider="cpu", target=1, quantize="int4", min_sqnr=None
    )
    assert [group.form for group in report.groups] == ["two"]
