"""Write weights with their gains folded in, in the order of the memory they go to.

    gate_0 | gate_1 | gate_2      a band of rows of all of them, then the next band
    -------+--------+-------

The memory may be that of a file, which goes to the disk meanwhile: fast from front to back, slow in strips.
Products are rounded once, as float64 would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Fold", "write"]

_SLICE = 1 << 18  # elements folded in float64 at a time: bounds the copy, and keeps it in a processor's cache
_BAND = 1 << 24  # bytes of one weight that are written before the next one's


@dataclass(frozen=True)
class Fold:
    """Means out = diag(rows) weight diag(columns), all [n, m]; rows [n] and columns [m] are float64."""

    weight: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    out: torch.Tensor

    def turned(self) -> Fold:
        """The same of the transposed matrices."""
        return Fold(self.weight.T, self.columns, self.rows, self.out.T)

    def part(self, rows: slice) -> Fold:
        """The same of some rows."""
        return Fold(self.weight[rows], self.rows[rows], self.columns, self.out[rows])


def write(folds: Sequence[Fold]) -> None:
    """Write every fold; those that lie side by side in memory band by band."""
    # Rows are what lies together in memory.
    folds = [fold.turned() if fold.out.stride(0) < fold.out.stride(1) else fold for fold in folds]
    quick = [_is_quick(fold) for fold in folds]
    height = len(folds[0].out) if _are_side_by_side(folds) else 0
    widest = max(fold.out.shape[1] * fold.out.element_size() for fold in folds)
    step = max(1, _BAND // max(1, widest)) if height else max(len(fold.out) for fold in folds)
    for start in range(0, max(height, 1), step):
        for fold, is_quick in zip(folds, quick, strict=True):
            part = fold.part(slice(start, start + step))
            (_write_quickly if is_quick else _write_in_float64)(part)


def _are_side_by_side(folds: Sequence[Fold]) -> bool:
    """Whether the folds write columns of one matrix."""
    first, last = folds[0].out, folds[-1].out
    row = first.stride(0) * first.element_size()
    return len(folds) > 1 and 0 < last.data_ptr() - first.data_ptr() < row


def _is_quick(fold: Fold) -> bool:
    """Whether one multiplication in the weight's own type gives what float64 would be rounded to.

    It does where one factor alone is not all ones and the type holds it exactly.
    """
    dtype = fold.weight.dtype
    if fold.out.dtype != dtype:
        return False
    exact = [bool((each.to(dtype).double() == each).all()) for each in (fold.rows, fold.columns)]
    ones = [_are_ones(each) for each in (fold.rows, fold.columns)]
    return (exact[0] and ones[1]) or (exact[1] and ones[0])


def _write_quickly(fold: Fold) -> None:
    if fold.weight.stride(1) != 1 and fold.weight.stride(0) == 1:
        # torch transposes quickly only when it does nothing else.
        fold.out.copy_(fold.weight)
        fold = Fold(fold.out, fold.rows, fold.columns, fold.out)
    factor = fold.columns if _are_ones(fold.rows) else fold.rows[:, None]
    if not _are_ones(factor):
        torch.mul(fold.weight, factor.to(fold.weight.dtype), out=fold.out)
    elif fold.weight is not fold.out:
        fold.out.copy_(fold.weight)


def _write_in_float64(fold: Fold) -> None:
    step = max(1, _SLICE // max(1, fold.weight.shape[1]))
    for start in range(0, len(fold.weight), step):
        part = fold.part(slice(start, start + step))
        part.out.copy_(part.weight.double() * part.rows[:, None] * part.columns)


def _are_ones(factor: torch.Tensor) -> bool:
    return bool((factor == 1).all())
