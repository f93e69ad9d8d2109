"""The figures that a user sees, from tensors of any type. All sums are in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

__all__ = [
    "MAX_DB",
    "EndToEnd",
    "ErrorMeter",
    "GroupError",
    "end_to_end",
    "group_error",
    "is_finite",
    "relative_error",
]

MAX_DB = 200.0
"""An exact match is reported as this many dB, since infinity has no JSON."""


@dataclass(frozen=True)
class GroupError:
    """Fusion loss of one group over all measured tokens.

    sqnr_db: 10 log10(|x_n - x_0|^2 / |x_n(fused) - x_n|^2), in dB.
    relative_error: |x_n(fused) - x_n| / |x_n|.
    cosine: mean cosine of x_n(fused) and x_n over tokens.
    """

    sqnr_db: float
    relative_error: float
    cosine: float


@dataclass(frozen=True)
class EndToEnd:
    """The fused model against the original at its logits, or at its first floating-point output.

    kl: mean over tokens of KL(original || fused) in nats; top1_agreement: the share of tokens whose most
    likely next token is the same; both None where the output is no logits.
    """

    output: str
    tokens: int
    relative_error: float
    kl: float | None
    top1_agreement: float | None


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """|value - reference| / |reference| in the Frobenius norm; 0 for two zeros."""
    difference = _norm(value.double() - reference.double())
    return 0.0 if difference == 0.0 else difference / max(_norm(reference.double()), 1e-300)


@dataclass
class ErrorMeter:
    """Gathers a group's loss, one batch of x_0, x_n and x_n(fused) at a time, each [..., hidden]."""

    signal: float = 0.0
    noise: float = 0.0
    power: float = 0.0
    cosines: float = field(default=0.0, repr=False)
    tokens: int = 0

    def add(self, start: torch.Tensor, end: torch.Tensor, fused: torch.Tensor) -> None:
        """Count one batch."""
        x0, xn, xf = (each.double().reshape(-1, each.shape[-1]) for each in (start, end, fused))
        self.signal += float((xn - x0).square().sum())
        self.noise += float((xf - xn).square().sum())
        self.power += float(xn.square().sum())
        self.cosines += float(torch.nn.functional.cosine_similarity(xf, xn, dim=-1).sum())
        self.tokens += len(xn)

    def result(self) -> GroupError:
        """The loss over all tokens so far."""
        relative = math.sqrt(self.noise / max(self.power, 1e-300))
        return GroupError(_decibels(self.signal, self.noise), relative, self.cosines / max(self.tokens, 1))


def group_error(
    starts: Sequence[torch.Tensor], ends: Sequence[torch.Tensor], fused: Sequence[torch.Tensor]
) -> GroupError:
    """The loss of a group from x_0, x_n and x_n(fused) of every sample, each [..., hidden]."""
    meter = ErrorMeter()
    for start, end, other in zip(starts, ends, fused, strict=True):
        meter.add(start, end, other)
    return meter.result()


def end_to_end(
    name: str, originals: Sequence[torch.Tensor], fused: Sequence[torch.Tensor], *, logits: bool
) -> EndToEnd:
    """Compare one output of both models over all samples, each [..., classes].

    Classes that are ruled out in both (logits of minus infinity) count for nothing.
    """
    divergence = agreement = noise = power = 0.0
    tokens = 0
    for one, other in zip(originals, fused, strict=True):
        p, q = (each.double().reshape(-1, each.shape[-1]) for each in (one, other))
        noise += _sum((q - p).square())
        power += _sum(p.square())
        tokens += len(p)
        if logits:
            log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
            divergence += _sum(log_p.exp() * (log_p - log_q))
            agreement += float((p.argmax(-1) == q.argmax(-1)).sum())
    error = math.sqrt(noise / max(power, 1e-300))
    if not logits:
        return EndToEnd(name, tokens, error, None, None)
    return EndToEnd(name, tokens, error, max(0.0, divergence / tokens), agreement / tokens)


def is_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(each).all()) for each in tensors)


def _sum(terms: torch.Tensor) -> float:
    """The sum of those terms that are finite."""
    return float(terms.nan_to_num(0.0, 0.0, 0.0).sum())


def _norm(tensor: torch.Tensor) -> float:
    return float(tensor.square().sum().sqrt())


def _decibels(signal: float, noise: float) -> float:
    if math.isnan(signal) or not math.isfinite(noise):
        return -MAX_DB
    if noise <= 0.0:
        return MAX_DB
    return min(MAX_DB, max(-MAX_DB, 10.0 * math.log10(max(signal, 1e-300) / noise)))
