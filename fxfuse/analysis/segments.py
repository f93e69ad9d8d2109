"""Every segment of every chain as one group: drift and local error of all, KL of those asked for."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Literal, TypeAlias

from fxfuse.analysis.measure import Measurements
from fxfuse.analysis.records import ChainFacts, Dependency, Segment
from fxfuse.divergence import Divergence
from fxfuse.progress import track

__all__ = ["Choice", "figures", "lengths_measured", "measure_segments", "with_dependency"]

Choice: TypeAlias = Literal["auto", "all", "pairs", "none"]
"""Which segments' KL is measured: "pairs" are those of two blocks and each whole chain; "auto" means all of
chains of up to 12 blocks, and pairs of longer ones."""

_SHORT = 12


def measure_segments(taken: Measurements, choice: Choice) -> list[Segment]:
    """All segments of two blocks or more."""
    segments = list(_local(taken))
    kls = _kls(taken, choice)
    found = []
    for each in segments:
        kl, error = figures(kls.get((each.chain, each.first, each.last)))
        found.append(replace(each, kl=kl, kl_error=error))
    return found


def with_dependency(segment: Segment, chain: ChainFacts, measured: Dependency) -> Segment:
    """The segment with the sum of M over the pairs of its blocks; as it is where M lacks one of them."""
    places = {name: place for place, name in enumerate(measured.names)}
    blocks = [places.get(name) for name in chain.blocks[segment.first : segment.last + 1]]
    known = [place for place in blocks if place is not None]
    if len(known) < len(blocks):
        return segment
    return replace(segment, dependency=sum(measured.matrix[i][j] for i, j in combinations(known, 2)))


def figures(kl: Divergence | None) -> tuple[float | None, float | None]:
    """A KL and its standard error as they are kept: None where there is none."""
    if kl is None or not kl.tokens:
        return None, None
    return kl.kl, None if math.isnan(kl.standard_error) else kl.standard_error


def _local(taken: Measurements) -> Iterator[Segment]:
    """Drift and local error of every segment."""
    for chain, first in track(_starts(taken), "measuring local errors", taken.progress):
        errors = taken.local_errors(taken.chains[chain].blocks[first:])
        for last, error in enumerate(errors[1:], first + 1):
            drift, distance = taken.drift(chain, first, last), max(0.0, 1.0 - error.cosine)
            yield Segment(
                chain, first, last, drift, error.sqnr_db, error.relative_error, cosine_distance=distance
            )


def _kls(taken: Measurements, choice: Choice) -> dict[tuple[int, int, int], Divergence]:
    """The KL of the segments asked for, by chain, first and last block."""
    lengths = {
        start: lengths_measured(len(taken.chains[start[0]].blocks), start[1], choice)
        for start in _starts(taken)
    }
    runs = sum(map(len, lengths.values()))
    if not runs:
        return {}
    runs *= len(taken.held_out.places(taken.kl_tokens))
    ticks = track(range(runs), "measuring segments", taken.progress)
    found = {}
    for (chain, first), wanted in lengths.items():
        blocks = taken.chains[chain].blocks[first:]
        kls = taken.segment_kls(blocks, wanted, lambda: next(ticks, None)) if wanted else {}
        found.update({(chain, first, first + length - 1): kl for length, kl in kls.items()})
    return found


def _starts(taken: Measurements) -> list[tuple[int, int]]:
    """Chain and first block of every segment."""
    return [
        (place, first) for place, chain in enumerate(taken.chains) for first in range(len(chain.blocks) - 1)
    ]


def lengths_measured(blocks: int, first: int, choice: Choice) -> Collection[int]:
    """The lengths of the segments from `first` whose KL is measured."""
    if choice == "none":
        return ()
    if choice == "all" or (choice == "auto" and blocks <= _SHORT):
        return range(2, blocks - first + 1)
    return {2, blocks} if first == 0 else {2}
