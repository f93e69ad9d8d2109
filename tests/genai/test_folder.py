"""From a checkpoint's folder to one of ONNX Runtime GenAI, by the function and by the command."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

import fxfuse
from fxfuse.checkpoints.api import fuse_checkpoint
from fxfuse.cli import main
from fxfuse.genai import api
from fxfuse.genai.api import export_genai
from tests.genai.models import generated, greedy
from tests.loading import small

pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai-cuda has no wheel for this Python")

PROMPT = [3, 5, 7, 9]


def wide_gates(folder: Path) -> list[int]:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return [each.dims[1] for each in model.graph.initializer if "gate_proj.MatMul" in each.name]


@pytest.mark.parametrize("family", small.FAMILIES)
def test_every_family_fused(family: str, tmp_path: Path) -> None:
    """Six layers whose FFNs 0-2 and 3-4 are fused: three layers, three caches, the same tokens."""
    dtype = torch.bfloat16 if family == "qwen3" else torch.float32
    own = {"head_dim": 16} if family == "mistral" else {}
    given = small.make(tmp_path / "in", family, dtype, **own)
    fuse_checkpoint(given.folder, tmp_path / "fused", auto=True)
    report = export_genai(tmp_path / "fused", tmp_path / "out", provider="cpu")
    assert (report.layers, report.caches) == (3, 3)
    assert wide_gates(tmp_path / "out") == [3 * small.WIDTH, 2 * small.WIDTH, small.WIDTH]
    assert report.relative_error is not None
    assert report.relative_error < 1e-5
    model = fxfuse.load_pretrained(tmp_path / "fused", torch.float32)
    assert generated(tmp_path / "out", PROMPT, 20) == greedy(model, PROMPT, 20)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = small.make(tmp_path / "in")
    out = tmp_path / "out"
    arguments = ["genai", str(given.folder), "-o", str(out), "--provider", "cpu"]
    assert main(arguments) == 0
    written, told = capsys.readouterr()
    assert written.startswith(f"{out}: fp32 for cpu, 6 layers, 3 caches, FFNs of 256 (6); logits differ by ")
    assert "Saving" not in written + told
    assert generated(out, PROMPT, 20) == greedy(given.whole, PROMPT, 20)
    assert main(arguments) == 2
    assert "is not empty: choose another output or give --force" in capsys.readouterr().err
    assert main([*arguments, "--force", "--precision", "int8"]) == 0
    assert "int8 for cpu" in capsys.readouterr().out


def test_an_interrupted_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "export_genai", stop)
    assert main(["genai", str(tmp_path), "-o", str(tmp_path / "out")]) == 130
    assert "interrupted: nothing was written" in capsys.readouterr().err


def test_layers_with_heads_of_their_own(tmp_path: Path) -> None:
    """Each cache has its layer's key-value heads."""
    model = small.stock("llama", num_key_value_heads=4)
    config = model.config
    config.num_key_value_heads = 2
    model.model.layers[3].self_attn = type(model.model.layers[3].self_attn)(config, 3)
    config.num_key_value_heads = 4
    report = export_genai(model.eval(), tmp_path / "out", provider="cpu")
    assert report.relative_error is not None
    assert report.relative_error < 1e-5
    assert generated(tmp_path / "out", PROMPT, 20) == greedy(model, PROMPT, 20)
    inputs = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.input
    heads = [each.type.tensor_type.shape.dim[1].dim_value for each in inputs if each.name.endswith(".key")]
    assert heads == [4, 4, 4, 2, 4, 4]


def test_the_long_rotation_of_phi3(tmp_path: Path) -> None:
    """Two tables, of which a text takes one by its length: here the first."""
    rotation = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + n / 8 for n in range(8)],
        "long_factor": [2.0 + n for n in range(8)],
    }  # fmt: skip
    model = small.stock(
        "phi3", rope_parameters=rotation, original_max_position_embeddings=32, max_position_embeddings=128
    )
    report = export_genai(model, tmp_path / "out", provider="cpu")
    assert report.relative_error is not None
    assert report.relative_error < 1e-5
    assert json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["context_length"] == 128
