"""A Llama of a few kilobytes, written down name by name: no library has a say in what its checkpoint is.

Five layers; by default 2 and 3 have no attention, so that FFNs 1, 2 and 3 are a run.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from fxfuse.checkpoints.recipes import output_tensors
from fxfuse.checkpoints.records import Checkpoint, Layout
from tests.checkpoints.hand import draw, folder_of, made

HIDDEN, WIDTH, HEADS, KEYS, VOCAB, LAYERS = 24, 32, 4, 2, 40, 5
REMOVED = (2, 3)

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN,
    "intermediate_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS, "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 5000.0,
    "max_position_embeddings": 64, "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip


def attention(layer: int, keys: int = KEYS) -> dict[str, torch.Tensor]:
    size, prefix = HIDDEN // HEADS, f"model.layers.{layer}"
    shapes = {
        "input_layernorm": (HIDDEN,), "self_attn.q_proj": (HEADS * size, HIDDEN),
        "self_attn.k_proj": (keys * size, HIDDEN), "self_attn.v_proj": (keys * size, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * size),
    }  # fmt: skip
    return {
        f"{prefix}.{name}.weight": draw(*shape, seed=100 * layer + place)
        for place, (name, shape) in enumerate(shapes.items())
    }


def ffn(layer: int, width: int = WIDTH) -> dict[str, torch.Tensor]:
    prefix, seed = f"model.layers.{layer}", 100 * layer + 50
    return {
        f"{prefix}.post_attention_layernorm.weight": 1 + 0.1 * draw(HIDDEN, seed=seed),
        f"{prefix}.mlp.gate_proj.weight": draw(width, HIDDEN, seed=seed + 1),
        f"{prefix}.mlp.up_proj.weight": draw(width, HIDDEN, seed=seed + 2),
        f"{prefix}.mlp.down_proj.weight": draw(HIDDEN, width, seed=seed + 3),
    }


def tensors(
    removed: Collection[int] = REMOVED, without_ffn: Collection[int] = (), layers: int = LAYERS
) -> dict[str, torch.Tensor]:
    found = {"model.embed_tokens.weight": draw(VOCAB, HIDDEN, seed=1)}
    for layer in range(layers):
        found |= {} if layer in removed else attention(layer)
        found |= {} if layer in without_ffn else ffn(layer)
    found |= {"model.norm.weight": draw(HIDDEN, seed=2), "lm_head.weight": draw(VOCAB, HIDDEN, seed=3)}
    return found


def skips(removed: Collection[int] = REMOVED, without_ffn: Collection[int] = ()) -> dict[str, Any]:
    """A per_layer_config."""
    found: dict[str, Any] = {}
    for names, word in ((removed, "attention"), (without_ffn, "mlp")):
        for layer in names:
            found.setdefault(str(layer), {"skip": []})["skip"].append(word)
    return found


def write(folder: Path, stored: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """A checkpoint's folder: tensors by default without attention 2 and 3, and told so; None drops a key."""
    stored = tensors() if stored is None else stored
    words = {**CONFIG, "per_layer_config": skips(), **config}
    folder_of(folder, stored)
    kept = {name: value for name, value in words.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def all_made(checkpoint: Checkpoint, layout: Layout) -> dict[str, torch.Tensor]:
    """Every tensor of the fused checkpoint, as its recipe says."""
    return {
        each.name: made(checkpoint.tensors, each.recipe, each.shape, each.dtype)
        for each in output_tensors(checkpoint, layout)
    }
