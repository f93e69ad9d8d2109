"""mlx-lm reads the nemotron-nas checkpoint of the demo decoder, fused and not, as our loader does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fxfuse
import models
from fxfuse.checkpoints.api import fuse_checkpoint
from tests.loading.test_families import logits

mx = pytest.importorskip("mlx.core", reason="mlx has no wheel for this platform or is not installed")
loading = pytest.importorskip("mlx_lm.utils", reason="mlx-lm is not installed")


@pytest.fixture(scope="module")
def unfused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained demo decoder, whose layers 5 to 10 lack attention, as DeciLMForCausalLM."""
    folder, demo = tmp_path_factory.mktemp("demo"), models.load_demo()
    names = {name: name if name.startswith("lm_head.") else f"model.{name}" for name in demo.state_dict()}
    weights = {names[name]: value.contiguous() for name, value in demo.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shape = demo.config
    blocks = [
        {
            "attention": {"n_heads_in_group": 1} if layer.attention else {"no_op": True},
            "ffn": {"ffn_mult": 1.5 * layer.intermediate_size / shape.hidden_size},
        }
        for layer in shape.layers
    ]
    config = {
        "model_type": "nemotron-nas", "architectures": ["DeciLMForCausalLM"], "block_configs": blocks,
        "hidden_size": shape.hidden_size, "num_attention_heads": shape.num_heads,
        "num_hidden_layers": len(blocks), "rms_norm_eps": shape.eps, "vocab_size": shape.vocab_size,
        "rope_theta": shape.rope_theta, "rope_scaling": None, "max_position_embeddings": 4096,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def by_mlx(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model, _ = loading.load_model(folder)
    found: Any = np.array(model(mx.array(ids.numpy())).astype(mx.float32))
    return torch.from_numpy(found)


def text() -> torch.Tensor:
    return torch.tensor([list(b"The sum of many small changes is one large change, and none of them")])


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To the rounding of float32, relative to the size of the logits."""
    error = float((found - expected).norm() / expected.norm())
    assert error < 1e-5


def test_unfused(unfused: Path) -> None:
    model, ids = fxfuse.load_pretrained(unfused), text()
    torch.testing.assert_close(logits(model, ids), models.load_demo()(ids), rtol=1e-4, atol=1e-4)
    same(by_mlx(unfused, ids), logits(model, ids))


def test_fused(unfused: Path, tmp_path: Path) -> None:
    fuse_checkpoint(unfused, tmp_path / "fused", auto=True)
    model, ids = fxfuse.load_pretrained(tmp_path / "fused"), text()
    assert [layer.mlp.down_proj.in_features for layer in model.model.layers] == [512] * 4 + [3584, 512]
    same(by_mlx(tmp_path / "fused", ids), logits(model, ids))
