"""Arrays as calibration data: a stream of ids, rows of ids, or a model's inputs by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fxfuse.calibration.batches import IDS
from fxfuse.calibration.found import Found, Wishes
from fxfuse.calibration.windows import cut_stream
from fxfuse.errors import InputError

__all__ = ["drop_labels", "from_array", "from_arrays", "sole_name"]

_LABELS = ("labels", "label")


def from_array(where: str, value: Any, wishes: Wishes, source: str = "", name: str = "0") -> Found:
    """Token ids, [tokens] or [windows, tokens]; or floats from rank 3 on, as the model's input `name`.

    Raises:
        InputError: It is neither, is ragged, or is empty.
    """
    array = _array(where, value)
    kind = str(array.dtype)
    whole = array.dtype.kind in "iu" if isinstance(array, np.ndarray) else _is_int(array)
    source = source or f"{type(value).__name__} {list(array.shape)}"
    if 0 in array.shape:
        raise InputError(f"{where} is empty: give at least two windows of token ids.")
    if not whole and array.ndim < 3:
        kind = kind.removeprefix("torch.")
        raise InputError(f"{where} holds {kind} where token ids are whole numbers: save them as int64.")
    if whole and array.ndim not in (1, 2):
        raise InputError(
            f"{where} has the shape {list(array.shape)} where token ids are a stream [tokens] or rows "
            "[windows, tokens]."
        )
    if whole and array.ndim == 1:
        array = cut_stream(where, array, wishes.length)
    return Found(where, source, {IDS if whole else name: array})


def from_arrays(where: str, arrays: Mapping[str, Any], wishes: Wishes, source: str = "") -> Found:
    """A model's inputs by name, each [windows, ...]; a single array of whole numbers is one of token ids.

    Raises:
        InputError: There are none, they are ragged, or differ in their number of windows.
    """
    kept, notes = drop_labels(arrays)
    if not kept:
        raise InputError(f"{where} holds no arrays: give token ids as input_ids.")
    if len(kept) == 1:
        ((name, value),) = kept.items()
        found = from_array(where, value, wishes, source, sole_name(name))
        return Found(where, source or found.source, found.rows, notes=notes)
    read = {sole_name(name): _array(f"{name!r} of {where}", value) for name, value in kept.items()}
    counts = {name: array.shape[0] if array.ndim else 1 for name, array in read.items()}
    if len(set(counts.values())) > 1 or any(array.ndim == 0 for array in read.values()):
        told = ", ".join(f"{name!r} {list(array.shape)}" for name, array in read.items())
        raise InputError(
            f"{where} holds inputs with differing numbers of windows ({told}): axis 0 counts them."
        )
    if IDS in read and read[IDS].ndim != 2:
        raise InputError(f"{where} gives {IDS!r} the shape {list(read[IDS].shape)}: give [windows, tokens].")
    return Found(where, source or f"inputs {', '.join(read)}", read, notes=notes)


def drop_labels(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The inputs without labels, which a model would make a loss of, and a note where there were some."""
    dropped = [name for name in inputs if name in _LABELS]
    if not dropped or len(dropped) == len(inputs):
        return dict(inputs), ()
    kept = {name: value for name, value in inputs.items() if name not in dropped}
    return kept, (f"{dropped[0]!r} was left out: no labels are needed.",)


def sole_name(name: str) -> str:
    """The place of an input that numpy.savez named by its place, and its name otherwise."""
    place = re.fullmatch(r"arr_(\d+)", name)
    return place[1] if place else name


def _is_int(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _array(where: str, value: Any) -> Any:
    """An array or tensor as it is, lists as an array."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.detach().cpu() if isinstance(value, torch.Tensor) else value
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty(0, object)
    if array.dtype.kind not in "iufb":
        lengths = sorted({len(row) for row in value if hasattr(row, "__len__")})
        if len(lengths) > 1:
            raise InputError(
                f"{where} has ragged rows, of {lengths[0]} to {lengths[-1]} tokens: give one stream of ids, "
                "or rows of one length."
            )
        raise InputError(f"{where} holds no numbers: give token ids.")
    return array
