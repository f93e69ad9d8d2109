"""KL divergence of logits with its standard error, gathered batch by batch. All sums are in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

__all__ = ["MAX_KL", "Divergence", "DivergenceMeter"]

MAX_KL = 1e6
"""Nats of a window where the changed model gives NaN or infinity, or rules out what the original allows."""

_AT_ONCE = 1 << 23
"""Logits that are compared at once: their copies in float64 take some hundred megabytes."""


@dataclass(frozen=True)
class Divergence:
    """How far a changed model's logits are from the original's.

    kl: mean over tokens of KL(original || changed) in nats; standard_error: over windows (one row of a
    batch), NaN where there is one; top1_agreement: share of tokens whose most likely next token is the same;
    windows: the mean of each, for paired comparisons.
    """

    kl: float
    standard_error: float
    top1_agreement: float
    tokens: int
    windows: tuple[float, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"KL {self.kl:.4g} ± {self.standard_error:.2g} nats on {self.tokens:,} tokens"


class DivergenceMeter:
    """Takes logits of both models, [windows, tokens, classes] or [tokens, classes], one batch at a time."""

    def __init__(self) -> None:
        self._windows: list[float] = []
        self._sizes: list[int] = []
        self._agreed = 0.0

    def add(self, original: torch.Tensor, changed: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Compare one batch; classes that the original rules out (minus infinity) count for nothing.

        `mask`, boolean [windows, tokens], says which tokens count; one of another shape is not for these.
        """
        rows, others = (each.reshape(-1, *each.shape[-2:]) for each in (original, changed))
        if mask is not None and mask.shape != rows.shape[:2]:
            mask = None
        for place, (row, other) in enumerate(zip(rows, others, strict=True)):
            counted = slice(None) if mask is None else mask[place].to(row.device)
            self._add_window(row[counted], other[counted])

    def _add_window(self, row: torch.Tensor, other: torch.Tensor) -> None:
        if not len(row):
            return
        total = 0.0
        for p, q in _pieces(row, other):
            log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
            terms = log_p.exp() * (log_p - log_q)
            total += float(terms.masked_fill(log_p == -math.inf, 0.0).sum())
            self._agreed += float((p.argmax(-1) == q.argmax(-1)).sum())
        mean = total / len(row)
        self._windows.append(min(mean, MAX_KL) if math.isfinite(mean) else MAX_KL)
        self._sizes.append(len(row))

    def result(self) -> Divergence:
        """What was gathered so far; NaN where nothing was."""
        tokens = sum(self._sizes)
        if not tokens:
            return Divergence(math.nan, math.nan, math.nan, 0)
        windows = torch.tensor(self._windows, dtype=torch.float64)
        sizes = torch.tensor(self._sizes, dtype=torch.float64)
        mean = float((windows * sizes).sum() / tokens)
        error = float(windows.std() / len(windows) ** 0.5) if len(windows) > 1 else math.nan
        return Divergence(max(0.0, mean), error, self._agreed / tokens, tokens, tuple(self._windows))


def _pieces(row: torch.Tensor, other: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Some tokens of both at a time."""
    step = max(1, _AT_ONCE // row.shape[-1])
    for start in range(0, len(row), step):
        yield row[start : start + step], other[start : start + step]
