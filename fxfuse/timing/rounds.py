"""What a list of times says: percentiles of one contestant, ratios of two."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Ratio", "Timing", "percentile"]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, interpolated linearly between neighbours."""
    if not values:
        raise ValueError("there is no percentile of nothing")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Timing:
    """One contestant on one case, in microseconds a call: all rounds together, and each round's median."""

    calls: int
    p10_us: float
    p50_us: float
    p90_us: float
    round_p50_us: tuple[float, ...]

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]]) -> Timing:
        """The figures of the calls' times, in seconds, of each round."""
        times = [1e6 * each for one in rounds for each in one]
        p10, p50, p90 = (percentile(times, share) for share in (0.1, 0.5, 0.9))
        return cls(len(times), p10, p50, p90, tuple(1e6 * percentile(one, 0.5) for one in rounds))


@dataclass(frozen=True)
class Ratio:
    """Time unfused / time fused: above 1 the fused form is faster; `least` to `greatest` is the noise."""

    median: float
    least: float
    greatest: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, unfused: Timing, fused: Timing) -> Ratio:
        """The ratio of each round's medians: what two contestants met within seconds of each other."""
        pairs = zip(unfused.round_p50_us, fused.round_p50_us, strict=True)
        rounds = tuple(one / other for one, other in pairs)
        return cls(statistics.median(rounds), min(rounds), max(rounds), rounds)

    @property
    def tells(self) -> bool:
        """Whether all rounds agree on who is faster."""
        return self.least > 1.0 or self.greatest < 1.0
