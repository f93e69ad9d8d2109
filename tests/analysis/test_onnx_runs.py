"""Any part of an ONNX file on any batch, with values of its inside taken as given: as torch computes them.

run(batch, [branch], {x: x'})  a block on another stream     run(batch, [logits], {out: x'})  from there on
"""

from pathlib import Path

import pytest
import torch
from onnx import TensorProto

from fxfuse.errors import InputError
from fxfuse.frontends import onnx_runs, pieces
from fxfuse.frontends.onnx_file import OnnxFile
from fxfuse.onnxio import load_model
from fxfuse.passes.chains import find_chains
from fxfuse.passes.records import Block
from tests.analysis.hand import forward, tiny, windows
from tests.small_onnx import Small, save

IDS = windows(3, 7)


@pytest.fixture(params=["whole", "pieces"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The model in one session, and in pieces of a few kilobytes of weights."""
    if request.param == "pieces":
        monkeypatch.setattr(pieces, "BOUND", 9000)
        monkeypatch.setattr(onnx_runs, "BOUND", 9000)
    return str(request.param)


def opened(path: Path, workspace: Path) -> tuple[OnnxFile, dict[str, Block]]:
    model, folder = load_model(path)
    front = OnnxFile(model, folder, [], workspace, "out.onnx", "cpu")
    found = find_chains(front.view)
    return front, {block.name: block for chain in found.chains for block in chain.blocks}


def near(value: torch.Tensor, exact: torch.Tensor, tolerance: float = 1e-5) -> bool:
    assert value.shape == exact.shape
    return float((value.double() - exact.double()).norm() / exact.double().norm()) < tolerance


def test_values_of_the_inside(onnx_path, tmp_path, form):
    front, blocks = opened(onnx_path, tmp_path)
    assert (len(front._runs.notes()) > 0) == (form == "pieces")
    true = forward(tiny(), IDS)
    for name, block in blocks.items():
        x, branch, out = front.run({"input_ids": IDS}, [block.x, block.branch, block.out])
        assert near(x, true.streams[name])
        assert near(branch, true.added[name])
        assert near(out, true.ends[name])


def test_logits(onnx_path, tmp_path, form):
    front, _ = opened(onnx_path, tmp_path)
    assert front.logits({"input_ids": IDS}) == "logits"
    (logits,) = front.run({"input_ids": IDS[:1, :5]}, ["logits"])
    assert near(logits, forward(tiny(), IDS[:1, :5]).logits)


def test_a_block_on_another_stream(onnx_path, tmp_path, form):
    front, blocks = opened(onnx_path, tmp_path)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    own = [blocks[f"layers.{index}.mlp"] for index in (1, 2, 3, 4)]
    found = front.run({"input_ids": IDS}, [block.branch for block in own], {block.x: x for block in own})
    for index, value in zip((1, 2, 3, 4), found, strict=True):
        layer = tiny().layers[index]
        assert near(value, layer.mlp(layer.post_attention_layernorm(x)))


def test_the_model_from_a_state_on(onnx_path, tmp_path, form):
    """With out = x the block is left out, whatever comes before."""
    front, blocks = opened(onnx_path, tmp_path)
    for name in ("layers.2.mlp", "layers.4.mlp", "layers.6.mlp"):
        (x,) = front.run({"input_ids": IDS}, [blocks[name].x])
        (logits,) = front.run({"input_ids": IDS}, ["logits"], {blocks[name].out: x})
        assert near(logits, forward(tiny(), IDS, [name]).logits)
        assert not near(logits, forward(tiny(), IDS).logits, 1e-3)


def test_two_values_known(onnx_path, tmp_path, form):
    """The one behind hides the one before it."""
    front, blocks = opened(onnx_path, tmp_path)
    x = torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(0))
    known = {blocks["layers.2.mlp"].out: torch.zeros_like(x), blocks["layers.4.mlp"].out: x}
    (one,) = front.run({"input_ids": IDS}, ["logits"], known)
    (other,) = front.run({"input_ids": IDS}, ["logits"], {blocks["layers.4.mlp"].out: x})
    assert near(one, other, 1e-6)


def test_sessions_are_kept_and_bounded(onnx_path, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_runs, "_OPEN", 2)
    front, blocks = opened(onnx_path, tmp_path)
    kept = front._runs._parts
    for name in ("layers.1.mlp", "layers.2.mlp", "layers.3.mlp"):
        for _ in range(2):
            front.run({"input_ids": IDS}, [blocks[name].branch], {blocks[name].x: torch.randn(1, 2, 32)})
    assert len(kept) == 2
    assert [next(iter(wanted)) for _, wanted in kept] == [blocks[f"layers.{i}.mlp"].branch for i in (2, 3)]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision(tmp_path, kind, form):
    """x3 = x0 + sum of three branches on x0, taken on where x3 was."""
    wide, by_name = opened(save(tmp_path / "w.onnx", Small(scale=0.2).model()), tmp_path)
    half, own = opened(save(tmp_path / "h.onnx", Small(scale=0.2, dtype=kind).model()), tmp_path)
    batch = {"input_ids": IDS % 32}
    results = []
    for front, blocks in ((wide, by_name), (half, own)):
        (x,) = front.run(batch, [next(iter(blocks.values())).x])
        parts = front.run(batch, [b.branch for b in blocks.values()], {b.x: x for b in blocks.values()})
        fused = (x.float() + torch.stack([part.float() for part in parts]).sum(0)).to(x.dtype)
        results.append(front.run(batch, ["logits"], {list(blocks.values())[-1].out: fused})[0])
    assert near(results[1], results[0], 3e-2 if kind == TensorProto.BFLOAT16 else 4e-3)
    assert not near(results[1], half.run(batch, ["logits"])[0], 1e-2)


def test_batches_of_other_names_and_types(onnx_path, tmp_path):
    front, _ = opened(onnx_path, tmp_path)
    (expected,) = front.run({"input_ids": IDS}, ["logits"])
    (found,) = front.run({"tokens": IDS.to(torch.int32), "attention_mask": torch.ones_like(IDS)}, ["logits"])
    assert torch.equal(found, expected)


def test_a_batch_that_does_not_fit(onnx_path, tmp_path):
    front, _ = opened(onnx_path, tmp_path)
    with pytest.raises(InputError, match="calibration batch"):
        front.run({"input_ids": IDS, "labels": IDS}, ["logits"])
