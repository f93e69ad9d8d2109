"""fxfuse.export_onnx: a module to a fused ONNX file in one call, or no file at all."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import fxfuse
from fxfuse import judge
from fxfuse.errors import InputError, VerificationError
from models.decoder import Decoder, DecoderConfig, LayerConfig
from tests.closeness import ROUNDING, assert_parallel, relative_error
from tests.families import build, ids
from tests.test_backend import HIDDEN, Tiny, frozen, tokens, vectors


def run(path: Path, *inputs: Tensor) -> Tensor:
    opened = fxfuse.session(path, "cpu")
    feed = {spec.name: value.numpy() for spec, value in zip(opened.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(opened.run(None, feed)[0])


def export(model: nn.Module, args: tuple[Any, ...], out: Path, **options: Any) -> fxfuse.Report:
    return fxfuse.export_onnx(model, args, out, **{"min_sqnr": None, "provider": "cpu", **options})


def opset(path: Path) -> int:
    return next(each.version for each in onnx.load(path).opset_import if each.domain == "")


def dynamic() -> Any:
    return ({0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("sequence", max=64)},)


def test_family(tmp_path: Path) -> None:
    out = tmp_path / "llama.onnx"
    report = export(build("llama"), (ids(),), out)
    assert [group.blocks for group in report.groups] == [
        tuple(f"model.layers.{index}.mlp" for index in group) for group in ((0, 1, 2), (3, 4))
    ]
    assert report.model == "LlamaForCausalLM"
    assert report.output == str(out)
    assert report.inputs == "given"
    assert report.end_to_end["tokens"] == 14
    assert [each.name for each in tmp_path.iterdir()] == ["llama.onnx"]
    assert_parallel(run(out, ids()), "llama")


def decoder() -> Decoder:
    layers = tuple(
        LayerConfig(attention=index not in (1, 2), intermediate_size=40 + index) for index in range(4)
    )
    torch.manual_seed(0)
    return Decoder(DecoderConfig(hidden_size=32, num_heads=4, layers=layers)).eval()


def parallel_logits(model: Decoder, chain: range, input_ids: Tensor) -> Tensor:
    cos, sin = model.rotary(input_ids.shape[1], input_ids.device)
    x = model.embed_tokens(input_ids)
    for index, layer in enumerate(model.layers):
        if index == chain.start:
            if layer.self_attn is not None:
                x = x + layer.self_attn(layer.input_layernorm(x), cos, sin)
            members = [model.layers[each] for each in chain]
            x = x + sum(each.mlp(each.post_attention_layernorm(x)) for each in members)
        elif index not in chain:
            x = layer(x, cos, sin)
    return model.lm_head(model.norm(x))


@torch.no_grad()
def test_decoder_of_the_models_folder_with_dynamic_shapes(tmp_path: Path) -> None:
    """Layers of unequal width: 40 + 41 + 42."""
    out, model = tmp_path / "decoder.onnx", decoder()
    report = export(model, (ids(),), out, dynamic_shapes=dynamic())
    assert [group.intermediate_size for group in report.groups] == [40 + 41 + 42]
    for size in ((2, 7), (1, 12)):
        exact = parallel_logits(decoder().double(), range(0, 3), ids(*size))
        assert relative_error(run(out, ids(*size)), exact) < ROUNDING[torch.float32]


@torch.no_grad()
def test_demo_model(tmp_path: Path) -> None:
    folder = Path(__file__).parents[1] / "models" / "demo"
    if not (folder / "model.safetensors").exists():
        pytest.skip("the demo model is not trained yet")
    from models.checkpoint import load_demo

    model, out = load_demo(), tmp_path / "demo.onnx"
    (chain,) = model.config.ffn_chains()
    report = export(model, (ids(1, 64),), out)
    assert [each.length for each in report.chains] == [len(chain)]
    assert report.fused_blocks == len(chain)
    exact = parallel_logits(load_demo().double(), chain, ids(1, 64))
    assert relative_error(run(out, ids(1, 64)), exact) < 4 * ROUNDING[torch.float32]


def test_opset_23(tmp_path: Path) -> None:
    out, model = tmp_path / "out.onnx", frozen()
    report = export(model, (tokens(),), out, opset=23)
    assert report.groups
    assert opset(out) == 23
    assert any(node.op_type == "RMSNormalization" for node in onnx.load(out).graph.node)
    assert relative_error(run(out, tokens()), model.parallel(tokens())) < ROUNDING[torch.float32]


class Named(nn.Module):
    """Takes its inputs by name, in another order than they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = frozen()

    def forward(self, x: Tensor, *, shift: Tensor, scale: Tensor) -> Tensor:
        return self.inner(x * scale + shift)


@torch.no_grad()
def test_keyword_arguments(tmp_path: Path) -> None:
    out, model = tmp_path / "out.onnx", Named().eval()
    kwargs = {"scale": torch.tensor(2.0), "shift": torch.full((HIDDEN,), 0.5)}
    report = export(model, (vectors(),), out, kwargs=kwargs)
    assert [len(group.blocks) for group in report.groups] == [3]
    opened = fxfuse.session(out, "cpu")
    feed = {"x": vectors().numpy(), **{name: value.numpy() for name, value in kwargs.items()}}
    expected = model.inner.parallel(vectors() * 2 + 0.5)
    assert relative_error(torch.from_numpy(opened.run(None, feed)[0]), expected) < ROUNDING[torch.float32]
    original = model(vectors(), **kwargs)
    assert report.end_to_end["relative_error"] == pytest.approx(relative_error(expected, original), rel=1e-3)


def test_bfloat16_is_exported_and_measured_in_float32(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    report = export(frozen().to(torch.bfloat16), (tokens(),), out)
    assert report.groups
    assert any("bfloat16" in note for note in report.notes)
    assert out.is_file()


def test_budget_holds(tmp_path: Path) -> None:
    out, model = tmp_path / "out.onnx", frozen()
    report = export(model, (tokens(),), out, exclude="layers.0")
    assert [group.blocks for group in report.groups] == [("layers.1.mlp", "layers.2.mlp")]


# The file is there or not


@pytest.mark.parametrize("options", [{"min_sqnr": 90.0}, {"include": "nothing"}])
def test_file_is_written_where_nothing_is_fused(tmp_path: Path, options: dict[str, Any]) -> None:
    out, model = tmp_path / "out.onnx", frozen()
    report = export(model, (tokens(),), out, **options)
    assert report.groups == []
    assert report.output == str(out)
    assert relative_error(run(out, tokens()), model(tokens())) < ROUNDING[torch.float32]
    assert [each.name for each in tmp_path.iterdir()] == ["out.onnx"]


def test_model_without_chains_is_written(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, out = torch.randn(2, 4), tmp_path / "out.onnx"
    report = export(model, (x,), out)
    assert report.chains == []
    assert report.output == str(out)
    torch.testing.assert_close(run(out, x), model(x).detach())


def test_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training mode: call model.eval\(\)"):
        export(frozen().train(), (tokens(),), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_unknown_option_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown option 'max_groups': did you mean 'max_group'"):
        export(frozen(), (tokens(),), tmp_path / "out.onnx", max_groups=2)
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_refused_without_force(tmp_path: Path) -> None:
    out, model = tmp_path / "out.onnx", frozen()
    out.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        export(model, (tokens(),), out)
    assert out.read_bytes() == b"mine"
    assert [each.name for each in tmp_path.iterdir()] == ["out.onnx"]
    assert export(model, (tokens(),), out, force=True).groups
    assert relative_error(run(out, tokens()), model.parallel(tokens())) < ROUNDING[torch.float32]


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        export(frozen(), (tokens(),), tmp_path / "nowhere" / "out.onnx")


def test_failing_verification_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide FFN whose down projection is one per cent too large is found out."""
    from fxfuse.frontends import onnx_file

    right = onnx_file.written

    def wrong(*arguments: Any, **more: Any) -> Any:
        stored = right(*arguments, **more)
        stored.tensors["down"].mul_(1.01)
        return stored

    monkeypatch.setattr(onnx_file, "written", wrong)
    with pytest.raises(VerificationError, match="nothing was written"):
        export(frozen(), (tokens(),), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(judge.Judge, "verify", stop)
    with pytest.raises(KeyboardInterrupt):
        export(frozen(), (tokens(),), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_nan_in_the_model_is_refused(tmp_path: Path) -> None:
    model = frozen()
    model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="gives NaN or infinity at layers.1.mlp"):
        export(model, (tokens(),), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = Tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, (tokens(),), tmp_path / "out.onnx")
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training


def test_progress_is_told(tmp_path: Path) -> None:
    steps: list[str] = []
    export(frozen(), (tokens(),), tmp_path / "out.onnx", progress=steps.append)
    assert steps[0] == "exporting"
    assert "verifying" in steps
