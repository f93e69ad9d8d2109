r"""Predict the KL of groups that were not measured from those that were.

    log KL = c + p log d        d = mean over tokens of 1 - cos(x_b fused, x_b sequential)

d, the group's own angular error, needs only its FFNs. To second order the KL is a quadratic form in the
error of the stream, so p is near 1. c and p are fitted by least squares over all measured segments, with a c
of its own for every chain that has some. On the demo model's chain of seven FFNs d ranks the 21 groups like
their KL with a Spearman of .99, the input drift with .97 to .98, the sum of M with .97; fitted on the pairs
alone it misses the others' KL by 15 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fxfuse.analysis.ranking import spearman
from fxfuse.analysis.records import Segment
from fxfuse.divergence import MAX_KL

__all__ = ["predict", "rank_correlations"]

Point = tuple[int, float, float]
"""Chain, log d, log KL."""


def predict(segments: Sequence[Segment]) -> list[Segment]:
    """The same segments with `predicted_kl`, in nats; None for all where none was measured."""
    points = [point for each in segments if (point := _point(each)) is not None]
    if not points:
        return list(segments)
    slope = _slope(points)
    levels = {chain: _level([each for each in points if each[0] == chain], slope) for chain, _, _ in points}
    overall = _level(points, slope)
    return [
        replace(each, predicted_kl=_value(each.cosine_distance, levels.get(each.chain, overall), slope))
        for each in segments
    ]


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
    return segment.chain, math.log(segment.cosine_distance), math.log(segment.kl)


def _slope(points: Sequence[Point]) -> float:
    """The slope p within chains; 1 where the points do not tell one, or tell one that cannot be."""
    over = under = 0.0
    for chain in {each[0] for each in points}:
        own = [each for each in points if each[0] == chain]
        x, y = (sum(each[axis] for each in own) / len(own) for axis in (1, 2))
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
