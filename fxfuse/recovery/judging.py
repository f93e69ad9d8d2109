"""What a group's weights are chosen by: the error on tokens that nothing was fitted on.

    error = mean over tokens of |x_n(fused) - x_n|^2 / |x_n|^2

Neighbouring tokens err alike, so the standard error of a difference is taken over stretches of tokens. A gain
counts where Student's t test is sure of it at 95 percent: two stretches hardly ever are, twenty easily.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxfuse.passes.weights import Wide
from fxfuse.recovery.ffn import WideFfn, pieces
from fxfuse.recovery.tokens import GroupTokens

__all__ = ["Candidate", "Errors", "is_sure", "local_errors"]

_STRETCH = 32
"""Consecutive tokens that are taken as one observation."""
_T = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81)
"""Student's t at 95 percent for 1, 2, ... degrees of freedom; the last one for all above."""


@dataclass(frozen=True)
class Errors:
    """The error of one form on some tokens, in stretches: their means, and how many tokens each has."""

    means: torch.Tensor
    sizes: torch.Tensor

    @property
    def mean(self) -> float:
        """Over all tokens."""
        return float((self.means * self.sizes).sum() / self.sizes.sum().clamp(min=1))

    def margin(self, other: Errors) -> float | None:
        """The standard error of the difference from another form on the same tokens; None for one stretch."""
        if len(self.means) < 2:
            return None
        return float((self.means - other.means).std() / len(self.means) ** 0.5)

    def beats(self, other: Errors) -> bool:
        """Whether it is surely lower."""
        return is_sure(other.means - self.means)


def is_sure(gains: torch.Tensor) -> bool:
    """Whether the mean of independent gains is above 0, by a one-sided t test at 95 percent; NaN is not."""
    if len(gains) < 2:
        return False
    error = float(gains.std()) / len(gains) ** 0.5
    return bool(float(gains.mean()) > _T[min(len(gains) - 2, len(_T) - 1)] * error)


@dataclass(frozen=True)
class Candidate:
    """One form of a group's weights, as it would be written, and its error on the held-out tokens."""

    name: str
    wide: Wide
    errors: Errors
    penalty: float | None = None


def local_errors(ffn: WideFfn, tokens: GroupTokens, wide: Wide) -> Errors:
    """The error of one form over a part of the data."""
    means, sizes = [], []
    for given in tokens:
        updates = [ffn.update(wide, ffn.unit(x)) for x in pieces(given.x, wide)]
        wrong = (given.x + torch.cat(updates) - given.end).double().square().sum(-1) * given.weight
        stretches = [wrong[at : at + _STRETCH] for at in range(0, len(wrong), _STRETCH)]
        means += [stretch.mean() for stretch in stretches]
        sizes += [len(stretch) for stretch in stretches]
    found = torch.stack(means).cpu() if means else torch.zeros(0, dtype=torch.float64)
    return Errors(found, torch.tensor(sizes, dtype=torch.float64))
