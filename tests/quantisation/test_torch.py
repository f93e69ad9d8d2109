"""fxfuse.fuse with quantize: int8 weights through torchao in modules, programs and GraphModules.

torchao is no part of the development environment, since transformers would import it in every process: where
it is not installed, rounding by hand takes its place.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxfuse
from fxfuse import cli
from fxfuse.errors import InputError
from fxfuse.frontends.exported import ExportedGraph
from fxfuse.frontends.programs import load_program, save_program
from fxfuse.frontends.torch_graph import TorchGraph
from fxfuse.passes.chains import find_chains
from fxfuse.passes.forms import Form
from fxfuse.quantisation import torch as module
from fxfuse.quantisation.options import Quantise

HIDDEN, WIDTH, VOCAB = 32, 48, 20
IDS = torch.arange(18).reshape(2, 9)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HIDDEN)
        self.gate = nn.Linear(HIDDEN, WIDTH)
        self.up = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.down = nn.Linear(WIDTH, HIDDEN)
        self.down.weight.data *= 0.05

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)
        self.eval()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def round_by_hand(linear: nn.Linear, _config: object) -> None:
    weight: Any = linear.weight
    weight.scale = weight.abs().amax(1, keepdim=True) / 127
    weight.qdata = (weight / weight.scale).round().to(torch.int8)


@pytest.fixture(autouse=True)
def torchao_or_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("torchao") is None:
        monkeypatch.setattr(module, "_torchao", lambda: (round_by_hand, object))


def graph(kind: str, model: Tiny) -> Any:
    if kind == "module":
        return model
    program = torch.export.export(model, (IDS,))
    return program if kind == "program" else program.module()


def error(model: Any, made: Any) -> float:
    run = made.module() if isinstance(made, torch.export.ExportedProgram) else made
    with torch.no_grad():
        one, two = model(IDS), run(IDS)
    return float((two - one).norm() / one.norm())


@pytest.mark.parametrize("kind", ["module", "program", "graph"])
def test_int8(kind: str) -> None:
    model = Tiny()
    made, report = fxfuse.fuse(graph(kind, model), (IDS,), quantize="int8")
    found = report.quantisation
    assert found is not None
    assert (found.kind, found.products, len(found.groups)) == ("int8", 4, 1)
    assert 0 < found.groups[0].relative_error < 0.02
    assert found.against_original["relative_error"] == pytest.approx(error(model, made), rel=1e-3)
    assert found.bytes_after < found.bytes_before / 2
    stored = made.state_dict if kind != "graph" else dict(made.state_dict())
    stored = stored if isinstance(stored, dict) else dict(stored)
    assert sum(tensor.dtype == torch.int8 for tensor in stored.values()) == 4
    matrices = [name for name, each in stored.items() if each.dim() == 2 and each.is_floating_point()]
    assert matrices == ["embed.weight"]


def test_saved_and_loaded_without_torchao(tmp_path: Path) -> None:
    model = Tiny()
    made, _ = fxfuse.fuse(model, (IDS,), quantize="int8")
    save_program(made, tmp_path / "q.pt2")
    loaded = load_program(tmp_path / "q.pt2")
    assert error(made.module(), loaded) == 0
    assert not any("torchao" in type(each).__module__ for each in loaded.state_dict.values())


@pytest.mark.parametrize("kind", ["program", "graph"])
def test_group_under_min_sqnr_stays_float(kind: str) -> None:
    model = Tiny()
    bound = fxfuse.fuse(graph(kind, model), (IDS,))[1].groups[0].sqnr_db - 1e-4
    made, report = fxfuse.fuse(graph(kind, model), (IDS,), quantize="int8", min_sqnr=bound)
    found = report.quantisation
    assert found is not None
    assert (found.products, [group.kept_float for group in found.groups]) == (1, [True])
    assert len(found.left) == 3
    assert error(model, made) < 0.02


def test_budget_and_exclude() -> None:
    model = Tiny()
    made, report = fxfuse.fuse(model, (IDS,), quantize="int8", quantize_exclude="head")
    found = report.quantisation
    assert found is not None
    assert found.products == 3
    assert "--quantize-exclude" in found.left[0].reason
    bound = report.end_to_end["kl"] * 1.5
    whole, report = fxfuse.fuse(model, (IDS,), quantize="int8", max_kl=bound)
    assert whole is not made
    assert report.groups == []
    assert any("quantised to int8 the logits' KL of" in miss.reason for miss in report.misses)
    assert error(model, whole) < 1e-6


def test_int4_and_torch_compile_say_where_to_go() -> None:
    with pytest.raises(InputError, match="quantised to int8 alone.*export_onnx"):
        fxfuse.fuse(Tiny(), (IDS,), quantize="int4")
    compiled = torch.compile(Tiny(), backend=fxfuse.backend, options={"quantize": "int8"})
    with pytest.raises(Exception, match="torch.compile does not quantise"):
        compiled(IDS)


@pytest.mark.parametrize("form", ["packed", "two/2", "packed/2"])
@pytest.mark.parametrize("kind", ["program", "graph"])
def test_every_form(kind: str, form: str) -> None:
    """Each slice of a weight is quantised for itself, and the wide weight is gone afterwards."""
    made = graph(kind, Tiny())
    front = ExportedGraph(made, (IDS,)) if kind == "program" else TorchGraph(made, (IDS,), {})
    blocks = find_chains(front.view).chains[0].blocks
    front.states([blocks[0].x])
    fused = front.apply([blocks], None, [Form.parse(form)])
    (before,) = front.outputs(fused, HIDDEN)[2]
    quantised = module.QuantisedGraph(front, fused, Quantise("int8"))
    assert quantised.products == {"packed": 3, "two/2": 7, "packed/2": 5}[form]
    quantised.drop_unread()
    (after,) = front.outputs(fused, HIDDEN)[2]
    assert 0 < float((after - before).norm() / before.norm()) < 0.02
    if kind == "program":
        whole = front.finish(fused)
        with torch.no_grad():
            assert float((whole.module()(IDS) - after).abs().max()) < 1e-6
        matrices = [
            name for name, each in whole.state_dict.items() if each.dim() == 2 and each.is_floating_point()
        ]
        assert matrices == ["embed.weight"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, data = tmp_path / "m.pt2", tmp_path / "ids.npy"
    save_program(torch.export.export(Tiny(), (IDS,)), path)
    np.save(data, np.tile(IDS.numpy(), (12, 1)))
    words = ["fuse", str(path), "--data", str(data)]
    assert cli.main([*words, "--quantize", "int8", "--quantize-exclude", "head"]) == 0
    assert "3 products as int8" in capsys.readouterr().out
    stored = load_program(tmp_path / "m.fused.pt2").state_dict.values()
    assert sum(tensor.dtype == torch.int8 for tensor in stored) == 3
    assert cli.main([*words, "--force", "--quantize", "int4"]) == 2
    assert "quantised to int8 alone" in capsys.readouterr().err


def test_exported_to_onnx(tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    report = fxfuse.export_onnx(Tiny(), (IDS,), out, quantize="int4", quantize_exclude="head", provider="cpu")
    assert report.quantisation is not None
    assert report.quantisation.products == 3
    (logits,) = fxfuse.session(out, "cpu").run(None, {"ids": IDS.numpy()})
    with torch.no_grad():
        original = Tiny()(IDS)
    assert float((torch.from_numpy(logits) - original).norm() / original.norm()) < 0.05
    assert report.output == str(out)


def test_torchao_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(InputError, match=r"pip install 'fxfuse\[quantize\]'"):
        fxfuse.fuse(Tiny(), (IDS,), quantize="int8")
