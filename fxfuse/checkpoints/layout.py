"""The layers of the fused checkpoint: a group becomes one layer in the place of its first.

    layer 0       layer 1       layer 2   layer 3   layer 4             layer 0: attention 0, FFN 0
    attention     attention                         attention     ->    layer 1: attention 1, FFN 1 + 2 + 3
    FFN           FFN           FFN       FFN       FFN                 layer 2: attention 4, FFN 4
                  ----------- a group -------

Layers that hold nothing are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fxfuse.checkpoints.dialects import WRITTEN, objections, padding_of
from fxfuse.checkpoints.grouping import check_groups
from fxfuse.checkpoints.records import Checkpoint, Group, Layout, OutputLayer
from fxfuse.errors import InputError

__all__ = ["lay_out"]

_ANY = "per_layer_config"
"""The dialect that can hold every family."""


def lay_out(checkpoint: Checkpoint, groups: Sequence[Group], dialect: str | None = None) -> Layout:
    """The layers that the fused checkpoint will have, padded as its dialect asks.

    Gains are read (they are small) to see whether a group's norm may keep the one that all its blocks share.

    Args:
        checkpoint: As `open_checkpoint` found it.
        groups: As `choose_groups` found them.
        dialect: One of `WRITTEN`; by default the source's own where that can be written, else
            per_layer_config.

    Raises:
        InputError: There is no such dialect, it cannot hold this model, or a group is none.
    """
    name = _dialect(checkpoint, dialect)
    layers = _layers(checkpoint, check_groups(checkpoint, groups))
    told = objections(name, checkpoint, layers)
    if told:
        raise InputError(f"{name} cannot hold this model: {told[0]}; write it as {_ANY}.")
    return Layout(name, tuple(_padded(layer, name) for layer in layers))


def _dialect(checkpoint: Checkpoint, asked: str | None) -> str:
    if asked is None:
        return checkpoint.dialect if checkpoint.dialect in WRITTEN else _ANY
    if asked not in WRITTEN:
        raise InputError(f"There is no dialect {asked!r}: choose from {', '.join(WRITTEN)}.")
    return asked


def _layers(checkpoint: Checkpoint, groups: Sequence[Group]) -> tuple[OutputLayer, ...]:
    firsts = {group[0]: group for group in groups}
    later = {number for group in groups for number in group[1:]}
    found: list[OutputLayer] = []
    for layer in checkpoint.layers:
        if layer.number in later or not (layer.attention or layer.ffn):
            continue
        sources = firsts.get(layer.number, (layer.number,))
        width = sum(checkpoint.layers[number].intermediate_size for number in sources)
        keeps = len(sources) == 1 or _share_gain(checkpoint, sources)
        found.append(OutputLayer(len(found), sources, layer.attention, width, keeps_gain=keeps))
    return tuple(found)


def _padded(layer: OutputLayer, dialect: str) -> OutputLayer:
    padding = padding_of(dialect, layer.intermediate_size) if layer.ffn else 0
    return replace(layer, intermediate_size=layer.intermediate_size + padding, padding=padding)


def _share_gain(checkpoint: Checkpoint, group: Group) -> bool:
    """Whether the norms of all blocks have the same weights, bit for bit."""
    names = [f"{checkpoint.prefix(number)}.{checkpoint.family.norm}.weight" for number in group]
    if len({checkpoint.tensors[name].dtype for name in names}) > 1:
        return False
    first, *others = (checkpoint.tensors.read(name).view(torch.uint8) for name in names)
    return all(torch.equal(each, first) for each in others)
