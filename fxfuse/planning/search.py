"""Shortest paths over the segments of chains: every block stays alone or goes into one segment.

    0 --[0,0]--> 1 --[1,3]--> 4 --[4,4]--> 5        chain of 5 as lengths (1, 3, 1): a path of 3 edges

Losses and latencies add up along a path and over chains, so that

1. the least loss for every depth (FFNs left in a row) is a dynamic programme over (place, depth), and the
   `count` best paths to a place are among the best ones to the places before it;
2. the paths of which none is both faster and better are found by carrying, for every place, the labels
   (latency, loss) that no other dominates (Martins, EJOR 16, 1984).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Edge", "Edges", "Path", "best_by_depth", "pareto"]

_LABELS = 512
"""Labels carried for one place; more are thinned evenly along the front, its two ends kept."""


@dataclass(frozen=True)
class Edge:
    """What one segment costs: loss in nats, latency in milliseconds."""

    loss: float
    latency: float = 0.0


Edges: TypeAlias = "Sequence[Mapping[int, Edge]]"
"""A chain: for each place where a segment can end, the allowed segments by the place where they start.

`edges[last][first]` is the segment first..last, both inclusive. A segment of one block has to be there.
"""


@dataclass(frozen=True, order=True)
class Path:
    """A segmentation of all chains: its costs, and the lengths of its segments, a tuple for each chain."""

    loss: float
    latency: float
    lengths: tuple[tuple[int, ...], ...]

    @property
    def depth(self) -> int:
        """How many FFNs are left in a row, over all chains."""
        return sum(map(len, self.lengths))


def best_by_depth(chains: Sequence[Edges], count: int = 1) -> dict[int, list[Path]]:
    """For every depth that can be had, the `count` paths of the least loss, the best first.

    Equal losses are ordered by latency, then by lengths, so that the same input gives the same paths.
    """
    total = {0: [Path(0.0, 0.0, ())]}
    for edges in chains:
        total = _combined(total, _chain_by_depth(edges, count), count)
    return dict(sorted(total.items()))


def pareto(chains: Sequence[Edges], labels: int = _LABELS) -> list[Path]:
    """The paths that no other one beats in both latency and loss, the fastest first.

    Exact while no place has more than `labels` of them; beyond that a sample of the front.
    """
    total = [Path(0.0, 0.0, ())]
    for edges in chains:
        own = _chain_pareto(edges, labels)
        total = _undominated((_joined(one, other) for one in total for other in own), labels)
    return total


def _chain_by_depth(edges: Edges, count: int) -> dict[int, list[Path]]:
    places: list[dict[int, list[Path]]] = [{0: [Path(0.0, 0.0, ((),))]}]
    for last, starts in enumerate(edges):
        reached: dict[int, list[Path]] = {}
        for first, edge in starts.items():
            for depth, paths in places[first].items():
                longer = [_extended(path, edge, last - first + 1) for path in paths]
                reached.setdefault(depth + 1, []).extend(longer)
        places.append({depth: heapq.nsmallest(count, paths) for depth, paths in reached.items()})
    return places[-1]


def _combined(
    one: Mapping[int, list[Path]], other: Mapping[int, list[Path]], count: int
) -> dict[int, list[Path]]:
    """The best of both chains together, for every sum of depths."""
    found: dict[int, list[Path]] = {}
    for depth, paths in one.items():
        for more, others in other.items():
            joined = [_joined(path, another) for path in paths for another in others]
            found.setdefault(depth + more, []).extend(joined)
    return {depth: heapq.nsmallest(count, paths) for depth, paths in found.items()}


def _chain_pareto(edges: Edges, labels: int) -> list[Path]:
    places = [[Path(0.0, 0.0, ((),))]]
    for last, starts in enumerate(edges):
        reached = [
            _extended(path, edge, last - first + 1)
            for first, edge in starts.items()
            for path in places[first]
        ]
        places.append(_undominated(reached, labels))
    return places[-1]


def _undominated(paths: Iterable[Path], labels: int) -> list[Path]:
    """The paths that none beats, by rising latency and so by falling loss; at most `labels` of them."""
    kept: list[Path] = []
    for path in sorted(paths, key=lambda each: (each.latency, each.loss, each.lengths)):
        if not kept or path.loss < kept[-1].loss:
            kept.append(path)
    if len(kept) <= labels:
        return kept
    return [kept[index * (len(kept) - 1) // (labels - 1)] for index in range(labels)]


def _extended(path: Path, edge: Edge, length: int) -> Path:
    (lengths,) = path.lengths
    return Path(path.loss + edge.loss, path.latency + edge.latency, ((*lengths, length),))


def _joined(one: Path, other: Path) -> Path:
    return Path(one.loss + other.loss, one.latency + other.latency, (*one.lengths, *other.lengths))
