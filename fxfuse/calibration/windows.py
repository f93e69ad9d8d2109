"""Streams cut into windows, and windows divided into a part to fit on and a part held out.

A stream of token ids is cut into windows that do not overlap, the windows are put into an order drawn from
the seed, and the last ones are held out: no token is in both parts. Windows of a user's own may repeat; each
is taken once, so that none is held out that was fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fxfuse.calibration.batches import IDS, as_tensor, is_whole, leading, length_of
from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch

__all__ = [
    "Rows",
    "batched",
    "cut_stream",
    "held_out_count",
    "joined",
    "refilled",
    "shape_for",
    "shorten",
    "take",
    "unlike",
]

Rows: TypeAlias = "Mapping[str, np.ndarray[Any, Any] | Tensor]"
"""Windows by input name: arrays with the same first axis, which may still lie in a file."""


def shape_for(tokens: int, length: int, least: int = 2, most: int | None = None) -> tuple[int, int]:
    """How many windows of which length hold nearly `tokens`: equal ones, none longer than `length`."""
    whole = tokens // length
    counts = {
        max(least, each) if most is None else min(max(least, each), most) for each in (whole, whole + 1)
    }
    shapes = [(count, min(length, max(tokens // count, 1))) for count in counts]
    return max(shapes, key=lambda shape: (shape[0] * shape[1], shape[1]))


def cut_stream(
    where: str, stream: np.ndarray[Any, Any], length: int, begin: int | None = None
) -> np.ndarray[Any, Any]:
    """Cut [tokens] into [windows, length]; the rest is left out. Each window starts with `begin`, if given.

    Raises:
        InputError: There are not two windows, one to fit on and one to hold out.
    """
    own = length - (begin is not None)
    count = len(stream) // own
    if len(stream) == 0:
        raise InputError(f"{where} is empty: give at least two windows of token ids.")
    if count < 2:
        raise InputError(
            f"{where} holds {len(stream)} tokens, too few for two windows of {length}, one to fit on and one "
            "to hold out: give more, or a shorter context."
        )
    windows = stream[: count * own].reshape(count, own)
    if begin is None:
        return windows
    return np.concatenate([np.full((count, 1), begin, windows.dtype), windows], axis=1)


def take(rows: Rows, index: np.ndarray[Any, Any]) -> dict[str, Tensor]:
    """The windows of `index` in its order, as tensors; what lies in a file is read for these alone."""
    taken = {name: as_tensor(values[index]) for name, values in rows.items()}
    if IDS in taken and is_whole(taken[IDS]):
        taken[IDS] = taken[IDS].to(torch.int64)
    return taken


def unlike(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The windows without those that repeat one before them."""
    seen: set[bytes] = set()
    kept = []
    columns = [
        tensor.reshape(len(tensor), -1).cpu().contiguous().view(torch.uint8).numpy()
        for tensor in rows.values()
    ]
    for index in range(len(columns[0])):
        content = b"".join(column[index].tobytes() for column in columns)
        if content not in seen:
            seen.add(content)
            kept.append(index)
    if len(kept) == len(columns[0]):
        return dict(rows)
    return {name: tensor[torch.tensor(kept)] for name, tensor in rows.items()}


def held_out_count(count: int, share: float) -> int:
    """How many of `count` windows or batches are held out: the share, and at least one on either side."""
    return min(max(round(count * share), 1), count - 1)


def batched(rows: Mapping[str, Tensor], size: int) -> tuple[Batch, ...]:
    """Batches of `size` windows; the last may have fewer."""
    count = len(next(iter(rows.values())))
    return tuple(
        {name: tensor[start : start + size] for name, tensor in rows.items()}
        for start in range(0, count, size)
    )


def joined(batches: Sequence[Batch]) -> dict[str, Tensor] | None:
    """All windows of batches that differ in their number alone; None where they differ otherwise."""
    first = batches[0]
    kinds = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in first.items()}
    for batch in batches:
        counts = {tensor.shape[:1] for tensor in batch.values()}
        if len(counts) != 1 or counts == {()}:
            return None
        if {name: (tensor.shape[1:], tensor.dtype) for name, tensor in batch.items()} != kinds:
            return None
    return {name: torch.cat([batch[name] for batch in batches]) for name in first}


def refilled(batches: Sequence[Batch], size: int) -> tuple[tuple[Batch, ...], int]:
    """Batches of exactly `size` windows, and how many windows fill none; as they are where none is full."""
    rows = joined(batches)
    if rows is None:
        return tuple(batches), 0
    regrouped = batched(rows, size)
    count = len(next(iter(rows.values())))
    over = count % size
    return (regrouped[:-1], over) if over and count > size else (regrouped, 0)


def shorten(rows: Mapping[str, Tensor], tokens: int, least: int = 2) -> dict[str, Tensor]:
    """The first windows, with at most `tokens` in all: cut shorter where that keeps `least` of them.

    Raises:
        InputError: One window is longer than `tokens`, and the inputs are such that it cannot be cut.
    """
    shape, length = leading(rows).shape, length_of(rows)
    if len(shape) == 2 and all(tensor.shape == shape for tensor in rows.values()) and length > 1:
        count, length = shape_for(tokens, length, least, shape[0])
        return {name: tensor[:count, :length] for name, tensor in rows.items()}
    if tokens < length * least:
        raise InputError(
            f"{tokens} tokens are asked for, and {least} windows of these inputs have {length * least}: ask "
            "for more."
        )
    return {name: tensor[: tokens // length] for name, tensor in rows.items()}
