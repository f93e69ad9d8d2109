"""Checkpoints drawn at random from a config: every tensor that it calls for, and files beside them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from fxfuse.checkpoints.dialects import read_layers
from fxfuse.checkpoints.expected import expected, layer_number
from fxfuse.checkpoints.families import family_of
from fxfuse.checkpoints.records import Checkpoint
from fxfuse.checkpoints.tensors import Tensors
from tests.checkpoints.hand import draw, folder_of

LAYERS, HIDDEN, WIDTH = 6, 32, 48
REMOVED = (2, 3, 4)
"""Layers without attention: 1 to 4 are a run of four FFNs."""

OWN: Mapping[str, Mapping[str, Any]] = {
    "llama": {"mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "phi3": {},
    "gemma": {"head_dim": 16, "tie_word_embeddings": True},
    "granite": {
        "embedding_multiplier": 3.0, "residual_multiplier": 0.22, "attention_multiplier": 0.3,
        "logits_scaling": 1.7,
    },
}  # fmt: skip
SIDE = {
    "tokenizer.json": "{}",
    "generation_config.json": "{}\n",
    "README.md": "# Before\n",
    "LICENSE": "free",
}


def config_of(family: str, removed: Collection[int] = REMOVED, **own: Any) -> dict[str, Any]:
    skipped = {str(number): {"skip": ["attention"]} for number in removed}
    return {
        "model_type": family, "architectures": ["Some"], "hidden_size": HIDDEN, "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, **OWN[family],
        **({"per_layer_config": skipped} if skipped else {}), **own,
    }  # fmt: skip


def drawn(
    folder: Path,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    *,
    same_gains: bool = False,
    files: int = 2,
    **own: Any,
) -> Path:
    """A folder with weights, config and side files; same_gains: the FFNs' norms all have one gain."""
    config = config_of(family, **own)
    dialect, layers = read_layers(config, "config.json")
    known = family_of(config, "config.json")
    nothing = cast(Tensors, None)
    checkpoint = Checkpoint(folder, config, known, dialect, config["hidden_size"], layers, nothing)
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(files)]
    for number, (name, shape) in enumerate(expected(checkpoint).items()):
        seed = 7 if same_gains and name.endswith(f"{known.norm}.weight") else number
        layer = layer_number(name, known.layers) or 0
        tensor = draw(*shape, seed=seed) * 0.2 + (name.endswith("norm.weight") and known.gain_offset == 0)
        parts[layer * files // LAYERS][name] = tensor.to(dtype)
    folder_of(folder, *parts)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name, text in SIDE.items():
        (folder / name).write_text(text)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder."""
    found = Tensors(folder)
    return {name: found.read(name) for name in found}
