"""Rows of output tensors made in memory: gains folded in, parts put side by side, biases summed.

    below   gate_i diag(g_i)           beside   [ down_1 | down_2 | 0 ]

Products are taken in float64 and rounded once, or in the weight's own type where that gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from fxfuse.checkpoints.records import Given, Part, Summed
from fxfuse.checkpoints.tensors import DTYPES, Tensors
from fxfuse.passes.folding import Fold, write

__all__ = ["as_tensor", "fold", "is_plain", "join", "rows_of", "total", "width_of"]


def as_tensor(given: Given) -> torch.Tensor:
    """A tensor that is at hand as bytes, in memory of its own."""
    if not given.data:
        return torch.empty(given.shape, dtype=DTYPES[given.dtype])
    return torch.frombuffer(bytearray(given.data), dtype=DTYPES[given.dtype]).reshape(given.shape)


def rows_of(part: Part, tensors: Tensors) -> tuple[int, int]:
    """Which rows of its source a part takes; a scalar is one row."""
    shape = tensors[part.source].shape
    return part.rows or (0, shape[0] if shape else 1)


def width_of(part: Part, tensors: Tensors) -> int:
    """Elements of a row of a part; a vector is one column."""
    if part.columns is not None:
        return part.columns[1] - part.columns[0]
    return prod(tensors[part.source].shape[1:])


def is_plain(part: Part, tensors: Tensors, dtype: torch.dtype) -> bool:
    """Whether a part's values stay as they are."""
    return part.gain is None and part.factor == 1.0 and DTYPES[tensors[part.source].dtype] == dtype


def fold(part: Part, first: int, last: int, tensors: Tensors, dtype: torch.dtype) -> torch.Tensor:
    """Rows [first, last) of a part, [last - first, width], times its gain and factor or divided by them."""
    weight = _read(part, first, last, tensors)
    if is_plain(part, tensors, dtype):
        return weight
    out = torch.empty(weight.shape, dtype=dtype)
    rows = torch.ones(weight.shape[0], dtype=torch.float64)
    write([Fold(weight, rows, _columns(part, tensors, weight.shape[1]), out)])
    return out


def join(
    parts: Sequence[Part], width: int, first: int, last: int, tensors: Tensors, dtype: torch.dtype
) -> torch.Tensor:
    """Rows [first, last) of parts side by side, and zeros up to `width`."""
    out = torch.empty((last - first, width), dtype=dtype)
    place = 0
    for part in parts:
        found = fold(part, first, last, tensors, dtype)
        out[:, place : place + found.shape[1]] = found
        place += found.shape[1]
    out[:, place:] = 0
    return out


def total(recipe: Summed, tensors: Tensors, dtype: torch.dtype) -> torch.Tensor:
    """The sum of tensors of one shape, times the factor."""
    found = tensors.read(recipe.sources[0]).double()
    for name in recipe.sources[1:]:
        found += tensors.read(name).double()
    return (found * recipe.factor).to(dtype)


def _columns(part: Part, tensors: Tensors, width: int) -> torch.Tensor:
    """What every column is multiplied by, float64."""
    if part.gain is None:
        gain = torch.ones(width, dtype=torch.float64)
    elif isinstance(part.gain, Given):
        gain = as_tensor(part.gain).double() + part.gain_offset
    else:
        gain = tensors.read(part.gain).double() + part.gain_offset
    gain = gain * part.factor
    return torch.where(gain == 0, 0.0, 1 / gain) if part.divided else gain


def _read(part: Part, first: int, last: int, tensors: Tensors) -> torch.Tensor:
    start, _ = rows_of(part, tensors)
    if part.columns is not None:
        return tensors.read_columns(part.source, (start + first, start + last), part.columns)
    return tensors.read(part.source, start + first, start + last).reshape(last - first, -1)
