"""A decoder of transformers as plain records: which layers have attention, how wide each FFN is.

    embed_tokens -> [input_layernorm -> self_attn] [post_attention_layernorm -> mlp] ... -> norm -> lm_head

Either half of a layer may be missing. Packed products (qkv_proj, gate_up_proj) are handed on as views of
their rows, so that nothing is added to the model or written into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fxfuse.errors import InputError

__all__ = ["Attention", "Decoder", "DecoderLayer", "Ffn", "Weights", "read_decoder"]


@dataclass(frozen=True)
class Weights:
    """Of a product [out, in] with its bias [out], of a norm [hidden], or of the embedding [words, hidden]."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def rows(self, start: int, stop: int | None = None) -> Weights:
        """A product's outputs [start, stop), as a view."""
        return Weights(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])


@dataclass(frozen=True)
class Attention:
    """The names are those of transformers, which the builder reads too; `window`: positions seen, or None."""

    q_proj: Weights
    k_proj: Weights
    v_proj: Weights
    o_proj: Weights
    q_norm: Weights | None
    k_norm: Weights | None
    heads: int
    key_value_heads: int
    window: int | None


@dataclass(frozen=True)
class Ffn:
    """A gated FFN."""

    gate_proj: Weights
    up_proj: Weights
    down_proj: Weights

    @property
    def width(self) -> int:
        """Its intermediate size."""
        return int(self.down_proj.weight.shape[1])


@dataclass(frozen=True)
class DecoderLayer:
    """A layer; the norm of a half that is missing is None too."""

    input_layernorm: Weights | None
    self_attn: Attention | None
    post_attention_layernorm: Weights | None
    mlp: Ffn | None


@dataclass(frozen=True)
class Decoder:
    """All of a decoder but its forward.

    frequencies: by which positions rotate, [pairs]; rotation_scale: what cosines and sines are multiplied by;
    embedding_scale: what the embedding is multiplied by.
    """

    config: Any
    embed_tokens: Weights
    layers: tuple[DecoderLayer, ...]
    norm: Weights
    lm_head: Weights
    frequencies: torch.Tensor
    rotation_scale: float = 1.0
    embedding_scale: float = 1.0

    @cached_property
    def caches(self) -> dict[int, int]:
        """The number of each layer's cache among those that have one, by layer."""
        having = [number for number, layer in enumerate(self.layers) if layer.self_attn is not None]
        return {layer: cache for cache, layer in enumerate(having)}

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one tensor."""
        return self.embed_tokens.weight.data_ptr() == self.lm_head.weight.data_ptr()


def read_decoder(model: nn.Module) -> Decoder:
    """Read a causal language model of transformers.

    Raises:
        InputError: It is none, its products are no float ones in memory, or it has no attention at all.
    """
    config, inner = getattr(model, "config", None), getattr(model, "model", None)
    head, layers = getattr(model, "lm_head", None), getattr(inner, "layers", None)
    if config is None or inner is None or head is None or not isinstance(layers, nn.ModuleList):
        raise InputError(
            f"{type(model).__name__} is no decoder of transformers with model.layers and lm_head: give one, "
            "or the folder of a checkpoint."
        )
    embedding = inner.embed_tokens
    found = Decoder(
        config,
        _weights(embedding, "model.embed_tokens"),
        tuple(_layer(each, config, f"model.layers.{number}") for number, each in enumerate(layers)),
        _weights(inner.norm, "model.norm"),
        _weights(head, "lm_head"),
        inner.rotary_emb.inv_freq.detach().float().cpu(),
        float(getattr(inner.rotary_emb, "attention_scaling", 1.0)),
        _scale(embedding),
    )
    if not found.caches:
        raise InputError(
            "No layer of the model has attention, so that there is no cache to generate with: keep it in one."
        )
    return found


def _layer(layer: nn.Module, config: Any, place: str) -> DecoderLayer:
    attention, ffn = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    has_attention, has_ffn = hasattr(attention, "o_proj"), hasattr(ffn, "down_proj")
    return DecoderLayer(
        _weights(layer.input_layernorm, f"{place}.input_layernorm") if has_attention else None,
        _attention(attention, config, f"{place}.self_attn") if has_attention else None,
        _weights(layer.post_attention_layernorm, f"{place}.post_attention_layernorm") if has_ffn else None,
        _ffn(ffn, f"{place}.mlp") if has_ffn else None,
    )


def _attention(attention: Any, config: Any, place: str) -> Attention:
    size = _head_size(config)
    out = _weights(attention.o_proj, f"{place}.o_proj")
    first = int(out.weight.shape[1])
    if hasattr(attention, "qkv_proj"):
        packed = _weights(attention.qkv_proj, f"{place}.qkv_proj")
        second = (first + len(packed.weight)) // 2
        q, k, v = packed.rows(0, first), packed.rows(first, second), packed.rows(second)
    else:
        q, k, v = (_weights(getattr(attention, f"{each}_proj"), f"{place}.{each}_proj") for each in "qkv")
    q_norm, k_norm = (
        _weights(getattr(attention, name), f"{place}.{name}") if hasattr(attention, name) else None
        for name in ("q_norm", "k_norm")
    )
    window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    return Attention(q, k, v, out, q_norm, k_norm, first // size, len(k.weight) // size, window)


def _head_size(config: Any) -> int:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size % 16:
        raise InputError(
            f"The model's heads are of size {size}, and ONNX Runtime's attention with a cache asks for a "
            "multiple of 16: fuse a file of torch.onnx instead."
        )
    return int(size)


def _ffn(ffn: Any, place: str) -> Ffn:
    down = _weights(ffn.down_proj, f"{place}.down_proj")
    if hasattr(ffn, "gate_up_proj"):
        packed = _weights(ffn.gate_up_proj, f"{place}.gate_up_proj")
        half = len(packed.weight) // 2
        return Ffn(packed.rows(0, half), packed.rows(half), down)
    gate, up = (_weights(getattr(ffn, each), f"{place}.{each}") for each in ("gate_proj", "up_proj"))
    return Ffn(gate, up, down)


def _scale(embedding: Any) -> float:
    """What Gemma's embedding multiplies by, rounded as the model rounds it."""
    scale = getattr(embedding, "embed_scale", None)
    return 1.0 if scale is None else float(torch.as_tensor(scale).to(embedding.weight.dtype))


def _weights(module: Any, place: str) -> Weights:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if (
        not isinstance(weight, torch.Tensor)
        or type(weight.data) is not torch.Tensor
        or weight.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    ):
        raise InputError(
            f"{place} ({type(module).__name__}) holds no plain float weight: export the model as it was "
            "before quantisation, with precision int4 or int8 if the file shall be small."
        )
    if weight.is_meta:
        raise InputError(
            f"The weight of {place} is on the meta device or offloaded: load the model into memory first."
        )
    return Weights(weight.detach().cpu(), None if bias is None else bias.detach().cpu())
