"""Figures with standard errors from windows that both sides saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fxfuse.divergence import Divergence

__all__ = ["Figure", "recovered", "remaining"]


@dataclass(frozen=True)
class Figure:
    """A value and its standard error over windows."""

    value: float
    error: float

    def percent(self) -> str:
        """As "69.8 ± 0.9 %"."""
        return f"{100 * self.value:.1f} ± {100 * self.error:.1f} %"


def remaining(part: Divergence, whole: Divergence) -> Figure:
    """KL of `part` over KL of `whole` on the same windows; the error by linearisation of the ratio."""
    one, other = np.asarray(part.windows), np.asarray(whole.windows)
    if len(one) != len(other):
        raise ValueError(f"{len(one)} windows and {len(other)} are not the same ones")
    ratio = one.mean() / other.mean()
    residual = (one - ratio * other) / other.mean()
    return Figure(float(ratio), float(residual.std(ddof=1) / len(one) ** 0.5))


def recovered(part: Divergence, whole: Divergence) -> Figure:
    """The share of `whole`'s KL that `part` no longer has."""
    left = remaining(part, whole)
    return Figure(1.0 - left.value, left.error)
