"""The oracle: a decoder whose groups of FFNs are written by hand as the sum that fusing must equal.

    x0 = the stream after the attention of the group's first layer
    x  = x0 + sum_i scale_i * ffn_i(norm_i(x0))          FFN Fusion, arXiv 2503.18908, section 3

Plain torch on the modules of `families`; nothing of fxfuse is used. In float64 every norm is computed in
float64 too (transformers' own drop to float32), so `parallel_model(model, groups).double()` is a reference.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.families import decoder_layers, has_attention


class HandNorm(nn.Module):
    """RMSNorm or LayerNorm of a transformers module, computed in float32 or in the input's float64."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, getattr(norm, "bias", None)
        self.centred = isinstance(norm, nn.LayerNorm)
        self.offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0
        self.eps = getattr(norm, "variance_epsilon", None) or norm.eps

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        y = x.to(wide)
        if self.centred:
            y = y - y.mean(-1, keepdim=True)
        y = y / torch.sqrt((y * y).mean(-1, keepdim=True) + self.eps)
        y = y * (self.weight.to(wide) + self.offset)
        return (y if self.bias is None else y + self.bias.to(wide)).to(x.dtype)


class ParallelGroup(nn.Module):
    """The layers of one group: the attention of the first, if it is still there, then all FFNs at once."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        first = layers[0]
        self.layers = nn.ModuleList(layers)
        self.scale = getattr(first, "residual_multiplier", 1.0)
        self.keeps_attention = has_attention(first)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        if self.keeps_attention:
            x = x + self.scale * self._attend(self.layers[0], x, kwargs)
        total = torch.zeros_like(x)
        for layer in self.layers:
            total = total + self.scale * layer.mlp(layer.post_attention_layernorm(x))
        return x + total

    @staticmethod
    def _attend(layer: Any, x: Tensor, kwargs: dict[str, Any]) -> Tensor:
        attention = layer.attention if hasattr(layer, "attention") else layer.self_attn
        attended: Tensor = attention(hidden_states=layer.input_layernorm(x), **kwargs)[0]
        return attended


class PassThrough(nn.Module):
    """The place of a layer whose FFN was moved into a group."""

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return x


def parallel_model(model: nn.Module, groups: Sequence[Sequence[int]]) -> nn.Module:
    """Return a copy of a model of `families.build` in which each group of layer indices runs in parallel.

    Raises:
        ValueError: a group is not a run of layers of which all but the first have lost their attention.
    """
    parallel = copy.deepcopy(model)
    layers = decoder_layers(parallel)
    for group in groups:
        _check(layers, group)
        members = [layers[index] for index in group]
        for index in group:
            layers[index] = PassThrough()
        layers[group[0]] = ParallelGroup(members)
    _write_norms_by_hand(parallel)
    return parallel


def _check(layers: nn.ModuleList, group: Sequence[int]) -> None:
    if list(group) != list(range(group[0], group[0] + len(group))):
        raise ValueError(f"layers {list(group)} are not consecutive")
    kept = [index for index in group[1:] if has_attention(layers[index])]
    if kept:
        raise ValueError(f"layers {kept} still have their attention and cannot join a group")
    if has_attention(layers[group[0]]) and getattr(layers[group[0]], "use_parallel_residual", False):
        raise ValueError(f"layer {group[0]} runs its FFN beside its attention, not after it")


def _write_norms_by_hand(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith(("RMSNorm", "LayerNorm")):
                setattr(module, name, HandNorm(child))
