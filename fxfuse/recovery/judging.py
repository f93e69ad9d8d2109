"""What a group's weights are chosen by: the error on tokens that nothing was fitted on.

    error = mean over tokens of |x_n(fused) - x_n|^2 / |x_n|^2

Neighbouring tokens err alike, so the standard error of a difference is taken over stretches of tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fxfuse.passes.weights import Wide
from fxfuse.recovery.ffn import WideFfn, pieces
from fxfuse.recovery.tokens import GroupTokens

__all__ = ["Candidate", "Errors", "local_errors"]

_STRETCH = 32
"""Consecutive tokens that are taken as one observation."""


@dataclass(frozen=True)
class Errors:
    """The error of one form on some tokens, in stretches: their means, and how many tokens each has."""

    means: torch.Tensor
    sizes: torch.Tensor

    @property
    def mean(self) -> float:
        """Over all tokens."""
        return float((self.means * self.sizes).sum() / self.sizes.sum().clamp(min=1))

    def margin(self, other: Errors) -> float:
        """The standard error of the difference from another form on the same tokens; NaN if it has none."""
        if len(self.means) < 2:
            return math.nan
        return float((self.means - other.means).std() / len(self.means) ** 0.5)

    def beats(self, other: Errors) -> bool:
        """Whether it is lower by more than two standard errors of the difference."""
        return self.mean + 2.0 * self.margin(other) < other.mean  # NaN compares as False


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
