"""From an analysis to the graphs that are searched: which segments may be groups, and what each costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fxfuse.analysis.records import Analysis, ChainFacts, Segment
from fxfuse.budget import Budget
from fxfuse.naming import span
from fxfuse.planning.latency import Latency
from fxfuse.planning.search import Edge, Edges, Path

__all__ = ["Segments"]


@dataclass
class Segments:
    """The segments of an analysis under bounds.

    `legal` holds what size, names and known times allow, `within` those of them that keep min_sqnr as well.
    Costs are KL in nats or, where the analysis has none (`by_drift`), the input drift.
    """

    analysis: Analysis
    budget: Budget
    max_group_bytes: int | None = None
    latency: Latency | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Sort the segments out, and note what keeps some from being groups."""
        losses = [each.loss for each in self.analysis.segments]
        self.by_drift = bool(losses) and not any(map(math.isfinite, losses))
        self._places = {(each.chain, each.first, each.last): each for each in self.analysis.segments}
        self.legal = [self._edges(chain, facts, None) for chain, facts in enumerate(self.analysis.chains)]
        least = self.budget.min_sqnr
        self.within = [self._edges(chain, facts, least) for chain, facts in enumerate(self.analysis.chains)]
        self._tell()

    def groups(self, path: Path) -> list[Segment]:
        """The segments of a path that are groups of two blocks or more, in order."""
        found = []
        for chain, lengths in enumerate(path.lengths):
            first = 0
            for length in lengths:
                if length > 1:
                    found.append(self._places[chain, first, first + length - 1])
                first += length
        return found

    def names(self, segment: Segment) -> tuple[str, ...]:
        """The names of a segment's blocks."""
        return self.analysis.chains[segment.chain].blocks[segment.first : segment.last + 1]

    def time(self, segment: Segment) -> float | None:
        """Milliseconds of a group; None where none is known."""
        if self.latency is None:
            return None
        facts = self.analysis.chains[segment.chain]
        return self.latency.of(
            self.names(segment), facts.intermediate_sizes[segment.first : segment.last + 1]
        )

    def loss(self, segment: Segment) -> float:
        """What a group costs."""
        return segment.drift if self.by_drift else segment.loss

    def _edges(self, chain: int, facts: ChainFacts, min_sqnr: float | None) -> Edges:
        edges: list[dict[int, Edge]] = []
        for last, (name, width) in enumerate(zip(facts.blocks, facts.intermediate_sizes, strict=True)):
            alone = self.latency.of_block(name, width) if self.latency is not None else 0.0
            edges.append({last: Edge(0.0, alone)})
            for first in range(last):
                segment = self._places.get((chain, first, last))
                if segment is not None and self._allowed(segment, min_sqnr):
                    edges[last][first] = Edge(self.loss(segment), self.time(segment) or 0.0)
        return edges

    def _allowed(self, segment: Segment, min_sqnr: float | None) -> bool:
        return (
            self._refusal(segment) is None
            and math.isfinite(self.loss(segment))
            and (self.latency is None or self.time(segment) is not None)
            and (min_sqnr is None or segment.sqnr_db >= min_sqnr)
        )

    def _refusal(self, segment: Segment) -> str | None:
        """Which bound on size or names a segment breaks."""
        if self.budget.max_group is not None and segment.length > self.budget.max_group:
            return "max_group"
        size = sum(self.analysis.chains[segment.chain].weight_bytes[segment.first : segment.last + 1])
        if self.max_group_bytes is not None and size > self.max_group_bytes:
            return "the bound on a group's memory"
        if any(self.budget.allows(name) is not None for name in self.names(segment)):
            return "include and exclude"
        return None

    def _tell(self) -> None:
        segments = self.analysis.segments
        if self.by_drift:
            self.notes.append("the analysis has no KL: groups are ranked by the drift of their inputs")
        left = [each for each in segments if self._refusal(each) is None]
        timed = left if self.latency is None else [each for each in left if self.time(each) is not None]
        if len(timed) < len(left):
            first = next(each for each in left if self.time(each) is None)
            self.notes.append(
                f"no time is given for {len(left) - len(timed)} of {len(left)} groups, such as "
                f"{span(self.names(first))}: they are left out"
            )
        self._tell_bounds(segments)

    def _tell_bounds(self, segments: Sequence[Segment]) -> None:
        counts: dict[str, int] = {}
        for each in segments:
            refusal = self._refusal(each)
            if refusal is not None:
                counts[refusal] = counts.get(refusal, 0) + 1
        for what, count in counts.items():
            self.notes.append(f"{count} of {len(segments)} groups are ruled out by {what}")
        least = self.budget.min_sqnr
        poor = sum(1 for each in segments if least is not None and each.sqnr_db < least)
        if poor:
            hint = ": lower min_sqnr, or lift it, to fuse any" if poor == len(segments) else ""
            self.notes.append(f"{poor} of {len(segments)} groups keep less than {least:g} dB{hint}")
