"""Analyses that are written, not measured: chains of blocks whose loss grows with their length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fxfuse.analysis.records import Analysis, ChainFacts, ModelId, Segment
from fxfuse.divergence import Divergence

WIDTH, BYTES = 96, 1000

Loss = Callable[[tuple[str, ...]], float]


def power(names: tuple[str, ...]) -> float:
    """What the study of the demo model saw: n^3.5."""
    return 0.0005 * len(names) ** 3.5


def analysis(
    *lengths: int, loss: Loss = power, measured: bool = False, known: bool = True, decibels: float = 5.0
) -> Analysis:
    """Chains of these lengths; a group of n blocks keeps 45 - `decibels` * n dB."""
    chains, first = [], 0
    for length in lengths:
        chains.append(tuple(f"model.layers.{first + index}.mlp" for index in range(length)))
        first += length
    segments = [
        _segment(place, names, start, end, loss, measured, known, decibels)
        for place, names in enumerate(chains)
        for start in range(len(names))
        for end in range(start + 1, len(names))
    ]
    return Analysis(
        model="made",
        id=ModelId(64, tuple((name, WIDTH) for chain in chains for name in chain)),
        source="nowhere",
        tokens=10,
        held_out_tokens=10,
        seed=0,
        chains=[ChainFacts(chain, (WIDTH,) * len(chain), (BYTES,) * len(chain)) for chain in chains],
        segments=segments,
    )


def _segment(
    chain: int,
    names: tuple[str, ...],
    start: int,
    end: int,
    loss: Loss,
    measured: bool,
    known: bool,
    decibels: float,
) -> Segment:
    own = names[start : end + 1]
    return Segment(
        chain,
        start,
        end,
        drift=0.01 * len(own) ** 2,
        sqnr_db=45.0 - decibels * len(own),
        relative_error=0.1,
        predicted_kl=loss(own) if known else None,
        kl=loss(own) if measured and known else None,
    )


def summed(loss: Loss) -> Callable[[Sequence[tuple[str, ...]]], Divergence]:
    """A measure under which groups lose what `loss` says, together the sum."""
    return lambda groups: Divergence(sum(map(loss, groups)), 0.001, 0.9, 10)
