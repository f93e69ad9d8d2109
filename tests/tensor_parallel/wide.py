"""A family's model with each group of FFNs made one wide FFN by hand: stacked rows, gains folded."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tests.families import decoder_layers

PRODUCTS = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")


def fused_by_hand(model: nn.Module, groups: Sequence[Sequence[int]]) -> nn.Module:
    """A copy of a model of `families.build` in which each group stands at its first layer's place."""
    fused = copy.deepcopy(model)
    layers = decoder_layers(fused)
    gone: set[int] = set()
    for group in groups:
        _widen([layers[index] for index in group], fused.family.offset_gain)
        gone |= set(group[1:])
    for index in sorted(gone, reverse=True):
        del layers[index]
    fused.config.num_hidden_layers = len(layers)
    return fused


def _widen(layers: Sequence[Any], offset: bool) -> None:
    first = layers[0]
    gains = [each.post_attention_layernorm.weight.detach() + offset for each in layers]
    folded = []
    for layer, gain in zip(layers, gains, strict=True):
        weights = {name: getattr(layer.mlp, name).weight.detach() for name in _held(layer)}
        folded.append({name: w if name == "down_proj" else w * gain for name, w in weights.items()})
    for name in _held(first):
        parts = [each[name] for each in folded]
        if name == "gate_up_proj":
            halves = [part.chunk(2) for part in parts]
            weight = torch.cat([half[0] for half in halves] + [half[1] for half in halves])
        else:
            weight = torch.cat(parts, dim=1 if name == "down_proj" else 0)
        setattr(first.mlp, name, _linear(weight, _bias(layers, name)))
    first.post_attention_layernorm.weight.data.fill_(0.0 if offset else 1.0)


def _held(layer: Any) -> list[str]:
    return [name for name in PRODUCTS if hasattr(layer.mlp, name)]


def _bias(layers: Sequence[Any], name: str) -> torch.Tensor | None:
    biases = [getattr(each.mlp, name).bias for each in layers]
    if biases[0] is None:
        return None
    return sum(biases) if name == "down_proj" else torch.cat(biases)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made
