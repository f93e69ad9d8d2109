"""From whatever a user has to the two parts of calibration data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fxfuse.calibration.arrays import from_array, from_arrays
from fxfuse.calibration.batches import check_values, leading, length_of, tokens_of
from fxfuse.calibration.files import read_file
from fxfuse.calibration.found import Found, Wishes
from fxfuse.calibration.iterables import read_iterable
from fxfuse.calibration.windows import batched, held_out_count, shape_for, shorten, take, unlike
from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch
from fxfuse.progress import Progress, silent

__all__ = ["Divided", "divide"]


class Divided(NamedTuple):
    """The two parts, what they were read from, and what the user should know."""

    fit: tuple[Batch, ...]
    held_out: tuple[Batch, ...]
    source: str
    notes: tuple[str, ...]


def divide(source: Any, wishes: Wishes, progress: Progress = silent) -> Divided:
    """Read and divide; see `Calibration.of`.

    Raises:
        InputError: The data cannot be read, are too few, or hold what no model can take.
    """
    wishes.check()
    found = read(source, wishes, progress)
    return _whole_batches(found, wishes) if found.rows is None else _windows(found, wishes)


def read(source: Any, wishes: Wishes, progress: Progress) -> Found:
    """Windows or batches, by what kind of thing the source is."""
    if isinstance(source, (str, os.PathLike)):
        return read_file(source, wishes, progress)
    if isinstance(source, (np.ndarray, torch.Tensor)) or _is_numbers(source):
        return from_array("The array of token ids", source, wishes)
    if isinstance(source, Mapping):
        return from_arrays("The calibration data", dict(source), wishes)
    if isinstance(source, Iterable):
        return read_iterable(source, wishes, progress)
    raise InputError(
        f"Calibration data cannot be read from {type(source).__name__}: give a path, an array of token ids, "
        "or an iterable of batches."
    )


def _is_numbers(source: Any) -> bool:
    """Whether it is a list of token ids, or of rows of them."""
    if not isinstance(source, Sequence) or not source:
        return False
    first = source[0]
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    return isinstance(first, (int, float)) and not isinstance(source, tuple)


def _windows(found: Found, wishes: Wishes) -> Divided:
    """Windows in an order drawn from the seed; the last are held out."""
    assert found.rows is not None
    count = len(next(iter(found.rows.values())))
    _need_two(found, count, "window")
    wanted = count
    if wishes.max_tokens is not None:
        length = length_of(take(found.rows, np.arange(1)))
        wanted = shape_for(wishes.max_tokens, length, most=count)[0]
    rows = take(found.rows, np.random.default_rng(wishes.seed).choice(count, wanted, replace=False))
    if wishes.max_tokens is not None and tokens_of([rows]) > wishes.max_tokens:
        rows = shorten(rows, wishes.max_tokens)
    check_values(found.where, rows)
    different = unlike(rows)
    notes = [*found.notes]
    kept, repeated = (len(leading(each)) for each in (different, rows))
    if kept < repeated:
        notes.append(f"{repeated - kept} of {repeated} windows repeat another and were left out.")
        _need_two(found, kept, "window")
    held = held_out_count(kept, wishes.held_out)
    fit = {name: tensor[: kept - held] for name, tensor in different.items()}
    held_out = {name: tensor[kept - held :] for name, tensor in different.items()}
    size = found.batch_size or wishes.batch_size
    return Divided(batched(fit, size), batched(held_out, size), found.source, tuple(notes))


def _whole_batches(found: Found, wishes: Wishes) -> Divided:
    """Batches of differing shapes, in an order drawn from the seed; the last are held out."""
    for index, batch in enumerate(found.batches):
        check_values(f"Batch {index} of the calibration data", batch)
    _need_two(found, len(found.batches), "batch")
    order = np.random.default_rng(wishes.seed).permutation(len(found.batches))
    held = held_out_count(len(order), wishes.held_out)
    batches = [found.batches[index] for index in order]
    return Divided(tuple(batches[:-held]), tuple(batches[-held:]), found.source, tuple(found.notes))


def _need_two(found: Found, count: int, word: str) -> None:
    plural = "windows" if word == "window" else "batches"
    if count == 0:
        raise InputError(f"{found.where} is empty: give at least two {plural}.")
    if count < 2:
        raise InputError(
            f"{found.where} holds one {word} where two different ones are needed, one to fit on and one to "
            "hold out: give more."
        )
