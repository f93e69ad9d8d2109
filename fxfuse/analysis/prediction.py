r"""Predict the KL of groups that were not measured from those that were.

    log KL = c_b + p log d        d = mean over tokens of 1 - cos(x_b fused, x_b sequential)

d, the group's own angular error, needs only its FFNs. To second order the KL is a quadratic form in the
error of the stream, so p is near 1; which form depends on the place b where the group ends, since what comes
behind it is what reads the error. So c has a value for every end at which something was measured (the pair of
blocks that ends there is enough), and the chain's mean elsewhere; p is fitted within chains. On the trained
demo chains of seven FFNs, fitted on the pairs and the whole chain alone, this ranks the 21 groups like their
KL with a Spearman of .99 (RMSNorm, SwiGLU) and .96 to .98 (LayerNorm, ungated GELU), where d without ends has
.99 and .94 to .95, the input drift .97 and .94 to .96; it is off by 13 and 14 % rms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from fxfuse.analysis.ranking import spearman
from fxfuse.analysis.records import Segment
from fxfuse.divergence import MAX_KL

__all__ = ["predict", "rank_correlations"]

Place = tuple[int, int]
"""A chain, and the place in it where a group ends."""
Point = tuple[Place, float, float]
"""Where a group ends, log d, log KL."""


def predict(segments: Sequence[Segment]) -> list[Segment]:
    """The same segments with `predicted_kl`, in nats; None for all where none was measured."""
    points = [point for each in segments if (point := _point(each)) is not None]
    if not points:
        return list(segments)
    slope = _slope(points)
    levels = _Levels(points, slope)
    return [
        replace(each, predicted_kl=_value(each.cosine_distance, levels.at(each), slope)) for each in segments
    ]


class _Levels:
    """The constants c: by end, by chain, and of all.

    What was measured at an end is noisy, so the chain's mean counts there as one measurement more.
    """

    def __init__(self, points: Sequence[Point], slope: float) -> None:
        self._all = _level(points, slope)
        chains = _grouped(points, lambda end: end[0])
        self._chains = {chain: _level(own, slope) for chain, own in chains.items()}
        self._ends = {
            end: (len(own) * _level(own, slope) + self._chains[end[0]]) / (len(own) + 1)
            for end, own in _grouped(points, lambda end: end).items()
        }

    def at(self, segment: Segment) -> float:
        """That of the segment's end, or the nearest there is."""
        return self._ends.get((segment.chain, segment.last), self._chains.get(segment.chain, self._all))


def rank_correlations(segments: Sequence[Segment]) -> dict[str, float]:
    """Spearman's correlation with the measured KL, over the measured segments, of every figure they have."""
    measured = [each for each in segments if each.kl is not None]
    figures: dict[str, Callable[[Segment], float | None]] = {
        "predicted_kl": lambda each: each.predicted_kl,
        "drift": lambda each: each.drift,
        "dependency": lambda each: each.dependency,
        "relative_error": lambda each: each.relative_error,
    }
    found = {}
    for name, figure in figures.items():
        values = [(value, each.kl) for each in measured if (value := figure(each)) is not None]
        correlation = spearman([value for value, _ in values], [kl or 0.0 for _, kl in values])
        if not math.isnan(correlation):
            found[name] = correlation
    return found


def _point(segment: Segment) -> Point | None:
    """What a segment tells of how KL grows with the error."""
    if segment.kl is None or not 0.0 < segment.kl < MAX_KL or segment.cosine_distance <= 0.0:
        return None
    return (segment.chain, segment.last), math.log(segment.cosine_distance), math.log(segment.kl)


def _grouped(points: Sequence[Point], key: Callable[[Place], Hashable]) -> dict[Any, list[Point]]:
    found: dict[Any, list[Point]] = {}
    for point in points:
        found.setdefault(key(point[0]), []).append(point)
    return found


def _slope(points: Sequence[Point]) -> float:
    """The slope p within chains; 1 where the points do not tell one, or tell one that cannot be."""
    over = under = 0.0
    for own in _grouped(points, lambda end: end[0]).values():
        x, y = sum(each[1] for each in own) / len(own), sum(each[2] for each in own) / len(own)
        over += sum((each[1] - x) * (each[2] - y) for each in own)
        under += sum((each[1] - x) ** 2 for each in own)
    return over / under if under > 1e-12 and over > 0.0 else 1.0


def _level(points: Sequence[Point], slope: float) -> float:
    """The constant c."""
    return sum(y - slope * x for _, x, y in points) / len(points)


def _value(distance: float, level: float, slope: float) -> float:
    if distance <= 0.0:
        return 0.0
    return min(MAX_KL, math.exp(min(level + slope * math.log(distance), math.log(MAX_KL))))
