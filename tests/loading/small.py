"""Small checkpoints of every family whose attention is missing in runs, and the same model by another way.

    checkpoint   the tensors of a stock model of transformers, without those of some attentions and FFNs
    whole        that stock model with o_proj and down_proj zero there: what they add to the stream is 0

Both compute the same, bit for bit, and the second needs nothing of fxfuse.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

LAYERS, HIDDEN, WIDTH, HEADS, KEYS, VOCAB = 6, 64, 256, 4, 2, 96
REMOVED = (1, 2, 4)
"""Layers without attention by default: a run of three FFNs (0 to 2) and one of two (3, 4)."""

FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 6, "head_dim": 8}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
    ),
}  # fmt: skip
"""Model type: the classes' name, and what is particular of it."""


@dataclass
class Small:
    """A checkpoint's folder and the stock model that computes the same."""

    folder: Path
    whole: Any

    def logits(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self.whole(input_ids=ids, use_cache=False).logits

    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return found

    def configure(self, **words: Any) -> None:
        """Write words into the config; None takes one out."""
        config = {name: value for name, value in {**self.config(), **words}.items() if value is not None}
        (self.folder / "config.json").write_text(json.dumps(config))


def ids(batch: int = 2, tokens: int = 11) -> Tensor:
    return torch.randint(3, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(7))


def stock(family: str, dtype: torch.dtype = torch.float32, layers: int = LAYERS, **own: Any) -> Any:
    """A stock model whose gains and biases are random too."""
    name, particular = FAMILIES[family]
    sizes = {
        "hidden_size": HIDDEN, "intermediate_size": WIDTH, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": KEYS, "vocab_size": VOCAB, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128, "tie_word_embeddings": False,
    }  # fmt: skip
    model = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**{**sizes, **particular, **own})
    )
    draw = torch.Generator().manual_seed(len(family))
    for path, value in model.named_parameters():
        random = torch.randn(value.shape, generator=draw)
        gain, offset = "norm" in path, 0.0 if family == "gemma" else 1.0
        value.data = offset + 0.2 * random if gain else random * (0.3 if path.endswith("bias") else 0.15)
    return cast(model.eval(), dtype)


def cast(model: Any, dtype: torch.dtype) -> Any:
    """Parameters in another type, and not buffers: rotary frequencies stay in float32."""
    for value in model.parameters():
        value.data = value.data.to(dtype)
    model.config.dtype = dtype
    return model


def make(
    folder: Path,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    *,
    removed: Collection[int] = REMOVED,
    without_ffn: Collection[int] = (),
    widths: Mapping[int, int] | None = None,
    keep_tensors: bool = False,
    layers: int = LAYERS,
    **own: Any,
) -> Small:
    """A checkpoint in the `per_layer_config` dialect and its whole model.

    widths: of layers that are narrower; the whole model's further channels are zero. keep_tensors: those of
    absent attentions stay in the file.
    """
    model = stock(family, dtype, layers, **own)
    widths = dict(widths or {})
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            if number in removed:
                _silence(layer.self_attn.o_proj)
            if number in without_ffn:
                _silence(layer.mlp.down_proj)
            if number in widths:
                layer.mlp.down_proj.weight[:, widths[number] :] = 0
    model.save_pretrained(folder)
    gone = [_half(number, "self_attn", "input_layernorm") for number in removed if not keep_tensors]
    gone += [_half(number, "mlp", "post_attention_layernorm") for number in without_ffn]
    dropped = tuple(name for half in gone for name in half)
    dropped += ("lm_head.",) if own.get("tie_word_embeddings") else ()
    kept = {
        name: _cut(name, value, widths)
        for name, value in model.state_dict().items()
        if not name.startswith(dropped)
    }
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    made = Small(folder, model)
    made.configure(per_layer_config=_said(removed, without_ffn, widths) or None)
    return made


def _half(layer: int, *children: str) -> tuple[str, ...]:
    """What names of a half of a layer begin with."""
    return tuple(f"model.layers.{layer}.{child}." for child in children)


def _silence(product: torch.nn.Linear) -> None:
    product.weight.zero_()
    if product.bias is not None:
        product.bias.zero_()


def _said(
    removed: Collection[int], without_ffn: Collection[int], widths: Mapping[int, int]
) -> dict[str, dict[str, Any]]:
    said: dict[str, dict[str, Any]] = {}
    for layers, word in ((removed, "attention"), (without_ffn, "mlp")):
        for number in layers:
            said.setdefault(str(number), {}).setdefault("skip", []).append(word)
    for number, width in widths.items():
        said.setdefault(str(number), {})["intermediate_size"] = width
    return said


def _cut(name: str, value: Tensor, widths: Mapping[int, int]) -> Tensor:
    """The first channels of a narrower FFN."""
    parts = name.split(".")
    width = widths.get(int(parts[2])) if name.startswith("model.layers.") else None
    if width is None or ".mlp." not in name or name.endswith("down_proj.bias"):
        return value.clone()
    if parts[-2] == "down_proj":
        return value[:, :width].clone()
    if parts[-2] == "gate_up_proj":
        return torch.cat([half[:width] for half in value.chunk(2)])
    return value[:width].clone()
