"""What a batch is: tensors by input name, how many tokens it has, and which of its positions count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch

__all__ = ["IDS", "as_tensor", "check_values", "is_whole", "leading", "length_of", "positions", "tokens_of"]

IDS = "input_ids"
MASK = "attention_mask"

_UNSIGNED = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}
"""Types of NumPy that torch has no arithmetic for."""


def as_tensor(value: Any) -> Tensor:
    """A tensor of an array, a tensor or nested lists of numbers; bfloat16 goes by its bits.

    Raises:
        ValueError, TypeError: It is none of these, or ragged.
    """
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype.name in _UNSIGNED:
        array = array.astype(_UNSIGNED[array.dtype.name])
    array = np.array(array, order="C")  # of its own, and writable: the source may be a read-only map
    if array.dtype.name == "bfloat16" or array.dtype == np.dtype("V2"):  # numpy saves it without its name
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def is_whole(tensor: Tensor) -> bool:
    """Whether its type is one of whole numbers, as token ids are."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_values(where: str, inputs: Mapping[str, Tensor]) -> None:
    """Hold one batch, or all windows at once, against what no model can take.

    Raises:
        InputError: Token ids are not whole numbers, or floats hold NaN.
    """
    ids = inputs.get(IDS)
    if ids is not None and not is_whole(ids):
        kind = str(ids.dtype).removeprefix("torch.")
        raise InputError(f"{where} gives token ids as {kind}: give whole numbers, such as int64.")
    for name, tensor in inputs.items():
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise InputError(f"{where} holds NaN in {name!r}: mend what makes the data.")


def leading(batch: Batch) -> Tensor:
    """The tensor whose shape tells windows and tokens: the ids, else whole numbers, else the first."""
    if IDS in batch:
        return batch[IDS]
    whole = (tensor for tensor in batch.values() if is_whole(tensor) and tensor.dim() == 2)
    return next(whole, next(iter(batch.values())))


def positions(batch: Batch) -> Tensor | None:
    """Which positions count, [windows, context] of bool; None where all do.

    Padding, which `attention_mask` marks by 0, is no data: what is fitted or measured leaves it out.
    """
    mask, shape = batch.get(MASK), leading(batch).shape
    if mask is None or mask.dim() != 2 or mask.shape != shape[:2] or mask.is_floating_point():
        return None
    counted = mask != 0
    return None if bool(counted.all()) else counted


def length_of(batch: Batch) -> int:
    """How many positions one window has: 1 where its inputs are no sequence."""
    tensor = leading(batch)
    is_sequence = tensor.dim() == 3 or (tensor.dim() == 2 and is_whole(tensor))
    return int(tensor.shape[1]) if is_sequence else 1


def tokens_of(batches: Sequence[Batch]) -> int:
    """How many tokens the batches hold without padding; a window that is no sequence counts as one."""
    return sum(map(_tokens, batches))


def _tokens(batch: Batch) -> int:
    counted = positions(batch)
    if counted is not None:
        return int(counted.sum())
    tensor = leading(batch)
    return len(tensor) * length_of(batch) if tensor.dim() else 1
