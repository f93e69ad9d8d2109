"""What a tensor's recipe comes to in bytes, piece by piece, from the first byte to the last.

    gate_up  [ gate_1 diag(g_1) ]  bands       down  [ down_1 | down_2 | 0 ]  bands of rows
             [ gate_2           ]  spans
             [ 0                ]  bands

A span is bytes of one of the source's files as they lie there, which the system copies without showing them
to this process. A band is made in memory, some megabytes at a time. Both have the same bounds in every run,
so that one can go on where another was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TypeAlias

import torch

from fxfuse.checkpoints.folding import as_tensor, fold, is_plain, join, rows_of, total, width_of
from fxfuse.checkpoints.records import Copy, Given, OutputTensor, Part, Same, Stacked, Summed
from fxfuse.checkpoints.tensors import DTYPES, Tensors, size_of
from fxfuse.errors import FxfuseError

__all__ = ["Band", "Piece", "Span", "check", "pieces"]

_BAND = 1 << 24  # bytes made in memory at a time: malloc keeps them for the next band
_SPAN = 1 << 26  # bytes copied at a time: what progress tells and a kill costs


@dataclass(frozen=True)
class Span:
    """Bytes [start, start + nbytes) of a file."""

    file: Path
    start: int
    nbytes: int


@dataclass(frozen=True)
class Band:
    """Bytes that `make` gives, as those of a tensor."""

    nbytes: int
    make: Callable[[], torch.Tensor]


Piece: TypeAlias = Span | Band


def check(made: OutputTensor, tensors: Tensors) -> None:
    """Refuse a recipe that does not give what its tensor's shape needs: a mistake of this program.

    Raises:
        FxfuseError: It does not.
    """
    count, needed = sum(each.nbytes for each in pieces(made, tensors)), size_of(made.dtype, made.shape)
    if count != needed or not _fits(made, tensors):
        raise FxfuseError(
            f"{made.name} of shape {list(made.shape)} would be written with {count:,} bytes and not "
            f"{needed:,}: report this."
        )


def _fits(made: OutputTensor, tensors: Tensors) -> bool:
    """Whether parts are of their sources, side by side of one height, and bytes at hand of the right type."""
    recipe = made.recipe
    if isinstance(recipe, Given):
        return (recipe.dtype, recipe.shape) == (made.dtype, made.shape)
    if not isinstance(recipe, Stacked):
        return True
    parts = [part for run in recipe.runs for part in run]
    heights = {stop - start for start, stop in (rows_of(part, tensors) for part in parts)}
    return all(_lies_within(part, tensors) for part in parts) and (
        recipe.axis == 0 or heights == {made.shape[0]}
    )


def _lies_within(part: Part, tensors: Tensors) -> bool:
    height, width = (*tensors[part.source].shape, 1, 1)[:2]
    pairs = ((rows_of(part, tensors), height), (part.columns or (0, width), width))
    return all(0 <= start <= stop <= most for (start, stop), most in pairs)


def pieces(made: OutputTensor, tensors: Tensors) -> Iterator[Piece]:
    """The bytes of an output tensor in order; nothing is read before a band is made."""
    recipe, dtype = made.recipe, DTYPES[made.dtype]
    if isinstance(recipe, Same):
        yield from _constant(recipe.value, prod(made.shape), dtype)
    elif isinstance(recipe, Given):
        yield Band(len(recipe.data), partial(as_tensor, recipe))
    elif isinstance(recipe, Summed):
        count = prod(tensors[recipe.sources[0]].shape)
        yield Band(count * dtype.itemsize, partial(total, recipe, tensors, dtype))
    elif isinstance(recipe, Copy):
        yield from _below(Part(recipe.source, recipe.rows, factor=recipe.factor), tensors, dtype)
    elif recipe.axis == 0:
        yield from _runs(recipe, prod(made.shape[1:]), tensors, dtype)
    else:
        yield from _beside(recipe, tensors, dtype)


def _constant(value: float, count: int, dtype: torch.dtype) -> Iterator[Band]:
    step = _BAND // dtype.itemsize
    for start in range(0, count, step):
        size = min(step, count - start)
        yield Band(size * dtype.itemsize, partial(torch.full, (size,), value, dtype=dtype))


def _runs(recipe: Stacked, width: int, tensors: Tensors, dtype: torch.dtype) -> Iterator[Piece]:
    for run in recipe.runs:
        for part in run:
            yield from _below(part, tensors, dtype)
        yield from _constant(0.0, recipe.padding * width, dtype)


def _below(part: Part, tensors: Tensors, dtype: torch.dtype) -> Iterator[Piece]:
    """A part whose rows follow each other in the output."""
    start, stop = rows_of(part, tensors)
    row = width_of(part, tensors) * dtype.itemsize
    if is_plain(part, tensors, dtype) and part.columns is None:
        found = tensors[part.source]
        yield from _spans(found.file, found.start + start * row, (stop - start) * row)
        return
    for first, last in _bands(stop - start, row):
        yield Band((last - first) * row, partial(fold, part, first, last, tensors, dtype))


def _spans(file: Path, start: int, nbytes: int) -> Iterator[Span]:
    for place in range(start, start + nbytes, _SPAN):
        yield Span(file, place, min(_SPAN, start + nbytes - place))


def _beside(recipe: Stacked, tensors: Tensors, dtype: torch.dtype) -> Iterator[Band]:
    """Parts side by side: each row of the output is a row of every part, then padding."""
    parts = [part for run in recipe.runs for part in run]
    width = sum(width_of(part, tensors) for part in parts) + recipe.padding
    start, stop = rows_of(parts[0], tensors)
    for first, last in _bands(stop - start, width * dtype.itemsize):
        made = partial(join, parts, width, first, last, tensors, dtype)
        yield Band((last - first) * width * dtype.itemsize, made)


def _bands(rows: int, row: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BAND // max(1, row))
    for first in range(0, rows, step):
        yield first, min(rows, first + step)
