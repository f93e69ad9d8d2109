"""KL divergence of logits with its standard error, gathered batch by batch. All sums are in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

__all__ = ["Divergence", "DivergenceMeter"]


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

    def add(self, original: torch.Tensor, changed: torch.Tensor) -> None:
        """Compare one batch; classes that both rule out (minus infinity) count for nothing."""
        p, q = (each.double().reshape(-1, *each.shape[-2:]).log_softmax(-1) for each in (original, changed))
        kl = (p.exp() * (p - q)).nan_to_num(0.0, 0.0, 0.0).sum(-1)
        self._windows += kl.mean(-1).tolist()
        self._sizes += [kl.shape[1]] * kl.shape[0]
        self._agreed += float((p.argmax(-1) == q.argmax(-1)).sum())

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
