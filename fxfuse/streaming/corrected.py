"""Corrected weights of a group as the tensors of its blocks, under the names and in the types of the source.

    wide gate [sum of widths, hidden]    rows of block i         ->  gate_proj.weight of layer i
    wide down [hidden, sum of widths]    columns of block i / m  ->  down_proj.weight of layer i

The wide FFN reads its norm without gain, so every norm of the group has unit gain; m is the multiplier of the
residual add, which the wide down holds. The bias of down is the first block's, and that of the others 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fxfuse.checkpoints.records import Checkpoint
from fxfuse.checkpoints.settings import multiplier
from fxfuse.checkpoints.tensors import DTYPES
from fxfuse.errors import InputError
from fxfuse.passes.weights import Wide

__all__ = ["corrected_tensors"]


def corrected_tensors(checkpoint: Checkpoint, layers: Sequence[int], wide: Wide, path: Path) -> None:
    """Write the tensors of the blocks of `layers` whose wide FFN is `wide` to a safetensors file.

    Raises:
        InputError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(_tensors(checkpoint, layers, wide)), path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"Corrected weights cannot be written to {path} ({error}): free some space there."
        ) from error


def _tensors(checkpoint: Checkpoint, layers: Sequence[int], wide: Wide) -> Iterator[tuple[str, torch.Tensor]]:
    start, scale = 0, multiplier(checkpoint.config, "residual_multiplier")
    for place, layer in enumerate(layers):
        stop = start + checkpoint.layers[layer].intermediate_size
        for name, value in _block(checkpoint, wide, slice(start, stop), scale, first=place == 0):
            full = f"{checkpoint.prefix(layer)}.{name}"
            if full in checkpoint.tensors:
                stored = checkpoint.tensors[full]
                yield full, value.to(DTYPES[stored.dtype]).cpu().contiguous().reshape(stored.shape)
        start = stop


def _block(
    checkpoint: Checkpoint, wide: Wide, rows: slice, scale: float, *, first: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a block may have, by their names within its layer."""
    family, hidden = checkpoint.family, checkpoint.hidden_size
    yield f"{family.norm}.weight", torch.full((hidden,), 1.0 - family.gain_offset)
    halves = {"weight": (wide.gate, wide.up), "bias": (wide.gate_bias, wide.up_bias)}
    for ending, pair in halves.items():
        parts = [each[rows] for each in pair if each is not None]
        if family.packed is not None and parts:
            yield f"{family.packed}.{ending}", torch.cat(parts)
        elif parts:
            yield from zip((f"{family.gate}.{ending}", f"{family.up}.{ending}"), parts, strict=True)
    yield f"{family.down}.weight", wide.down[:, rows] / scale
    if wide.down_bias is not None:
        yield f"{family.down}.bias", wide.down_bias / scale if first else torch.zeros_like(wide.down_bias)
