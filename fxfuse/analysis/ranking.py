"""Spearman's rank correlation: how alike two figures order the same things."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["spearman"]


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of ranks, equal values sharing their mean rank; NaN for fewer than two or all equal.

    Raises:
        ValueError: The sequences are not equally long.
    """
    if len(one) != len(other):
        raise ValueError(f"{len(one)} and {len(other)} values cannot be compared by rank")
    a, b = (_ranks(np.asarray(each, dtype=np.float64)) for each in (one, other))
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(mean_ranks[places.reshape(-1)], dtype=np.float64)
