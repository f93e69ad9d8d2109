"""The front of loss against depth or latency: the best paths of every point, and whether they keep bounds."""

from __future__ import annotations

from dataclasses import dataclass

from fxfuse.planning.search import Path, best_by_depth, pareto
from fxfuse.planning.segments import Segments

__all__ = ["Point", "front_of"]

_NEAR = 1.5
"""Paths whose predicted loss is within this factor of the best one's are near ties."""


@dataclass
class Point:
    """One depth, or one latency: its paths by predicted loss, the best first.

    within: every group keeps min_sqnr.
    """

    paths: list[Path]
    within: bool

    @property
    def best(self) -> Path:
        """The path that is predicted to lose least."""
        return self.paths[0]

    @property
    def candidates(self) -> list[Path]:
        """The paths among which measuring may choose."""
        return [path for path in self.paths if path.loss <= _NEAR * self.best.loss]


def front_of(segments: Segments, count: int) -> list[Point]:
    """The points from the most fused, or the fastest, to the one that loses least.

    Where no path within min_sqnr is as deep as that or as fast, the best of those that break it stands.
    """
    return _by_depth(segments, count) if segments.latency is None else _by_latency(segments)


def _by_depth(segments: Segments, count: int) -> list[Point]:
    within = best_by_depth(segments.within, count)
    legal = best_by_depth(segments.legal, count)
    return [Point(within[depth], True) if depth in within else Point(legal[depth], False) for depth in legal]


def _by_latency(segments: Segments) -> list[Point]:
    within = pareto(segments.within)
    faster = [path for path in pareto(segments.legal) if path.latency < within[0].latency]
    alone = best_by_depth(
        [[{last: starts[last]} for last, starts in enumerate(each)] for each in segments.legal]
    )
    (none_fused,) = [path for paths in alone.values() for path in paths]
    within += [none_fused] if within[-1] != none_fused else []
    return [Point([path], False) for path in faster] + [Point([path], True) for path in within]
