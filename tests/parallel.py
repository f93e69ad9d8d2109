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

from tests.families import Family, decoder_layers, has_attention
from tests.families.records import handed_on


class HandNorm(nn.Module):
    """RMSNorm or LayerNorm of a transformers module, computed in float32 or in the input's float64."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        name = type(norm).__name__
        self.weight, self.bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        self.centred = isinstance(norm, nn.LayerNorm) or name == "OlmoLayerNorm"
        self.offset = 1.0 if name.startswith("Gemma") or name.endswith("1P") else 0.0
        self.eps = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        y = x.to(wide)
        if self.centred:
            y = y - y.mean(-1, keepdim=True)
        y = y / torch.sqrt((y * y).mean(-1, keepdim=True) + self.eps)
        y = y if self.weight is None else y * (self.weight.to(wide) + self.offset)
        return (y if self.bias is None else y + self.bias.to(wide)).to(x.dtype)


class ParallelGroup(nn.Module):
    """The layers of one group: the attention of the first, if it is still there, then all FFNs at once."""

    def __init__(self, layers: Sequence[Any], family: Family) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.family = family
        self.attention = _without_ffn(layers[0], family) if has_attention(layers[0]) else None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        given = self.attention(x, *args, **kwargs) if self.attention else handed_on(self.family, x, args)
        x, *others = given if isinstance(given, tuple) else (given,)
        total = torch.zeros_like(x)
        for layer in self.layers:
            total = total + self.family.branch(layer, x)
        return (x + total, *others) if others else x + total


class Nothing(nn.Module):
    """Stands for an FFN that adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _without_ffn(layer: Any, family: Family) -> nn.Module:
    """A copy of a layer that keeps its attention, so that it gives the stream between that and its FFN."""
    bare: nn.Module = copy.deepcopy(layer)
    bare.set_submodule(family.ffn, Nothing())
    return bare


class PassThrough(nn.Module):
    """The place of a layer whose FFN was moved into a group."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, x: Tensor, *args: Any, **_: Any) -> Any:
        return handed_on(self.family, x, args)


def parallel_model(model: nn.Module, groups: Sequence[Sequence[int]]) -> nn.Module:
    """Return a copy of a model of `families.build` in which each group of layer indices runs in parallel.

    Raises:
        ValueError: a group is not a run of layers of which all but the first have lost their attention.
    """
    parallel = copy.deepcopy(model)
    layers, family = decoder_layers(parallel), parallel.family
    for group in groups:
        _check(layers, group, family)
        members = [layers[index] for index in group]
        for index in group:
            layers[index] = PassThrough(family)
        layers[group[0]] = ParallelGroup(members, family)
    _write_norms_by_hand(parallel)
    return parallel


def _check(layers: nn.ModuleList, group: Sequence[int], family: Family) -> None:
    if list(group) != list(range(group[0], group[0] + len(group))):
        raise ValueError(f"layers {list(group)} are not consecutive")
    kept = [index for index in group[1:] if has_attention(layers[index])]
    if kept:
        raise ValueError(f"layers {kept} still have their attention and cannot join a group")
    if has_attention(layers[group[0]]) and family.parallel:
        raise ValueError(f"layer {group[0]} runs its FFN beside its attention, not after it")


def _write_norms_by_hand(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith(("RMSNorm", "LayerNorm", "LayerNorm1P")):
                setattr(module, name, HandNorm(child))
