"""The calls for scripts: their arguments, their errors, and what they promise of their reports."""

import copy
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

import fxfuse
from fxfuse import Budget, Report
from fxfuse.errors import FxfuseError, InputError, VerificationError
from fxfuse.files import default_output
from tests.exporters import exported
from tests.small_onnx import Small, save
from tests.test_fused_torch import Stack, made, stream, summed


def traced(depth: int = 3) -> fx.GraphModule:
    return fx.symbolic_trace(made(Stack(depth)))


# The package


def test_public_names_are_there_and_no_others() -> None:
    for name in fxfuse.__all__:
        assert getattr(fxfuse, name) is not None
    assert set(fxfuse.__all__) <= set(dir(fxfuse))
    with pytest.raises(AttributeError, match="has no attribute 'fuze'"):
        _ = fxfuse.fuze


def test_names_that_dynamo_looks_for_on_a_backend_are_absent() -> None:
    for name in ("reset", "get_compiler_config", "compiler_name", "compiler_fn", "backend_ctx_ctor"):
        assert not hasattr(fxfuse, name)


def test_backend_stays_a_function_after_its_module_is_imported() -> None:
    import fxfuse.backend

    assert callable(fxfuse.backend)
    assert fxfuse.backend.__name__ == "backend"


def test_errors_are_of_one_family() -> None:
    assert issubclass(InputError, FxfuseError)
    assert issubclass(InputError, ValueError)
    assert issubclass(VerificationError, FxfuseError)


# fuse


@pytest.mark.parametrize("graph, kind", [(print, "builtin_function_or_method"), ("model.onnx", "str")])
def test_fuse_takes_graphs_only(graph: Any, kind: str) -> None:
    with pytest.raises(InputError, match=f"a module, a GraphModule or an ExportedProgram, not {kind}"):
        fxfuse.fuse(graph, (stream(),))


@pytest.mark.parametrize("options, sentence", [
    ({"min_snr": 3}, "unknown option 'min_snr': did you mean 'min_sqnr'?"),
    ({"min_sqnr": "12"}, "min_sqnr must be a number or None, not '12'."),
    ({"min_sqnr": math.nan}, "min_sqnr must be a number or None, not nan."),
    ({"max_kl": -0.1}, "max_kl must not be negative, but is -0.1."),
    ({"max_group": 1}, "max_group must be a whole number of at least 2 or None, not 1."),
    ({"seed": -1}, "seed must be a whole number of at least 0, not -1."),
    ({"exclude": "("}, "exclude='(' is not a regular expression:"),
    ({"include": 3}, "include must be a regular expression as text or None, not 3."),
])  # fmt: skip
def test_options_are_checked_first(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fxfuse.fuse(traced(), (stream(),), **options)
    assert str(caught.value).startswith(sentence)
    with pytest.raises(InputError) as caught:
        fxfuse.fuse_onnx(tmp_path / "missing.onnx", **options)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("inputs", [(), (1, 2), (1, 2, 3)])
def test_inputs_must_be_as_many_as_the_graph_takes(inputs: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=f"takes 1 inputs but example_inputs holds {len(inputs)}"):
        fxfuse.fuse(traced(), [stream()] * len(inputs))
    with pytest.raises(InputError, match=f"takes 1 inputs but example_inputs holds {len(inputs)}"):
        fxfuse.fuse(exported(made(Stack()), (stream(),)), [stream()] * len(inputs))


@pytest.mark.parametrize("form", ["traced", "program"])
def test_nan_is_refused(form: str) -> None:
    graph = traced() if form == "traced" else exported(made(Stack()), (stream(),))
    with pytest.raises(InputError, match=r"gives NaN or infinity at blocks.0"):
        fxfuse.fuse(graph, (stream() * math.nan,))


def test_max_kl_needs_logits() -> None:
    class Headless(Stack):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    graph = fx.symbolic_trace(made(Headless()))
    with pytest.raises(InputError, match="max_kl needs a model that returns logits"):
        fxfuse.fuse(graph, (stream(),), min_sqnr=None, max_kl=0.1)
    _, report = fxfuse.fuse(graph, (stream(),), min_sqnr=None)
    assert report.groups
    assert report.end_to_end["kl"] is None
    assert report.end_to_end["relative_error"] > 0


@torch.no_grad()
def test_masked_logits_have_figures() -> None:
    """-inf for classes that are ruled out is no error, and its KL divergence is that of the others."""

    class Masked(Stack):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill(self.ruled_out, -math.inf)

    stack = Masked()
    stack.register_buffer("ruled_out", torch.arange(10) < 4)
    _, masked = fxfuse.fuse(fx.symbolic_trace(made(stack)), (stream(),), min_sqnr=None)
    stack = made(Stack())
    p, q = (f(stream())[..., 4:].double().log_softmax(-1) for f in (stack, lambda x: summed(stack, x)))
    assert masked.groups
    assert masked.end_to_end["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert math.isfinite(masked.end_to_end["relative_error"])
    assert json.loads(masked.to_json())["end_to_end"]["kl"] > 0


def test_logits_that_overflow_only_when_fused_are_refused() -> None:
    """y becomes minus infinity above a bound that only the parallel form's y reaches."""

    class Steep(Stack):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return torch.where(y > self.most, torch.log(y * 0), y)

    stack = Steep()
    stack.register_buffer("most", torch.zeros(()))
    x = stream()
    with torch.no_grad():
        made(stack)
        original, parallel = (f(x) for f in (lambda x: Stack.forward(stack, x), lambda x: summed(stack, x)))
        assert parallel.max() > original.max()
        stack.most.fill_(original.max())
    with pytest.raises(VerificationError, match="NaN or infinity where the original does not"):
        fxfuse.fuse(fx.symbolic_trace(stack), (x,), min_sqnr=None)


def test_fuse_logs_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fxfuse"):
        fxfuse.fuse(traced(), (stream(),), min_sqnr=None)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "fxfuse"]
    assert line.startswith("fxfuse: fused 3 FFN blocks into 1 (3), chains found: 3, least SQNR ")


def test_graph_and_inputs_are_left_as_they_were() -> None:
    graph, x = traced(), stream()
    code, weights = graph.code, copy.deepcopy(graph.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fused, _ = fxfuse.fuse(graph, (x,), min_sqnr=None)
    assert graph.code == code
    assert all(torch.equal(weights[name], value) for name, value in graph.state_dict().items())
    assert torch.equal(x, stream())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in fused.parameters())


def test_fused_graph_module_copies_saves_and_traces(tmp_path: Path) -> None:
    fused, _ = fxfuse.fuse(traced(), (stream(),), min_sqnr=None)
    expected = fused(stream())
    assert torch.equal(copy.deepcopy(fused)(stream()), expected)
    assert torch.equal(fx.symbolic_trace(fused)(stream()), expected)
    torch.save(fused, tmp_path / "fused.pt")
    assert torch.equal(torch.load(tmp_path / "fused.pt", weights_only=False)(stream()), expected)
    torch.testing.assert_close(torch.jit.trace(fused, stream())(stream()), expected)


def test_verification_failure_gives_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxfuse.frontends import torch_graph

    right = torch_graph.written

    def wrong(*arguments: Any, **more: Any) -> Any:
        stored = right(*arguments, **more)
        stored.tensors["gate"][0] += 1
        return stored

    monkeypatch.setattr(torch_graph, "written", wrong)
    with pytest.raises(VerificationError, match=r"wide FFN of blocks.0-2 differs from the parallel sum"):
        fxfuse.fuse(traced(), (stream(),), min_sqnr=None)


def test_report_is_plain_data() -> None:
    _, report = fxfuse.fuse(traced(), (stream(),), min_sqnr=None)
    assert isinstance(report, Report)
    told = json.loads(report.to_json())
    assert told == json.loads(json.dumps(report.to_dict()))
    assert {
        "model",
        "output",
        "inputs",
        "chains",
        "groups",
        "misses",
        "end_to_end",
        "versions",
    } <= told.keys()
    assert told["model"] == "Stack"
    assert told["seconds"] > 0
    assert "blocks.0" in str(report)


def test_budget_is_one_object_for_all() -> None:
    assert Budget() == Budget(12.0, None, None, None, None, 0)
    with pytest.raises(AttributeError):
        Budget().seed = 3  # type: ignore[misc]


# fuse_onnx


def test_error_is_kept_in_the_report_that_was_given(tmp_path: Path) -> None:
    report = Report(model="")
    with pytest.raises(InputError):
        fxfuse.fuse_onnx(tmp_path / "missing.onnx", report=report)
    assert report.model == str(tmp_path / "missing.onnx")
    assert "There is no model file" in str(report.error)
    assert report.output is None


@pytest.mark.parametrize("inputs, sentence", [
    ([], "inputs is empty: give at least one sample"),
    ([{"ids": np.zeros((1, 4), np.int64)}], "input_ids"),
    ([{"input_ids": np.zeros((4,), np.int64)}], "input_ids"),
    (["missing.npz"], "There is no input file missing.npz"),
])  # fmt: skip
def test_inputs_are_checked(tmp_path: Path, inputs: list[Any], sentence: str) -> None:
    path = save(tmp_path / "m.onnx", Small().model())
    with pytest.raises(InputError) as caught:
        fxfuse.fuse_onnx(path, provider="cpu", inputs=inputs)
    assert sentence in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_unknown_provider_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", Small().model())
    with pytest.raises(InputError, match="There is no provider 'tpu': choose auto, cuda or cpu"):
        fxfuse.fuse_onnx(path, provider="tpu")  # type: ignore[arg-type]


def test_input_is_never_overwritten_unless_forced(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", Small().model())
    before = path.read_bytes()
    with pytest.raises(InputError):
        fxfuse.fuse_onnx(path, path, provider="cpu")
    assert path.read_bytes() == before
    report = fxfuse.fuse_onnx(path, path, provider="cpu", force=True, min_sqnr=None)
    assert report.groups
    assert path.read_bytes() != before


def test_paths_may_be_text(tmp_path: Path) -> None:
    save(tmp_path / "m.onnx", Small().model())
    report = fxfuse.fuse_onnx(
        str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), provider="cpu", min_sqnr=None
    )
    assert report.output == str(tmp_path / "o.onnx")
    assert report.model == str(tmp_path / "m.onnx")


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", Small().model())
    report = fxfuse.fuse_onnx(path, provider="cpu", min_sqnr=None, dry_run=True)
    assert report.groups
    assert report.end_to_end
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("name, expected", [
    ("model.onnx", "model.fused.onnx"),
    ("model.v2.onnx", "model.v2.fused.onnx"),
    ("model", "model.fused.onnx"),
])  # fmt: skip
def test_default_output(name: str, expected: str) -> None:
    assert default_output(Path("folder") / name) == Path("folder") / expected
