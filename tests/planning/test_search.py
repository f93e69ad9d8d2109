"""Paths over segments against all segmentations, written out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxfuse.planning.search import Edge, Edges, Path, best_by_depth, pareto

# Multiples of 1/64 add up without rounding, so that costs can be compared for equality; ties are common.
COSTS = st.integers(0, 40).map(lambda value: value / 64)


@st.composite
def chains(draw, most: int = 8) -> list[Edges]:
    """One to three chains of together at most `most` blocks; some of the longer segments are not allowed."""
    lengths = draw(st.lists(st.integers(1, most), min_size=1, max_size=3).filter(lambda n: sum(n) <= most))
    return [
        [
            {
                first: Edge(draw(COSTS), draw(COSTS))
                for first in range(last + 1)
                if first == last or draw(st.integers(0, 4))
            }
            for last in range(length)
        ]
        for length in lengths
    ]


def segmentations(edges: Edges) -> Iterator[tuple[tuple[int, ...], float, float]]:
    """Every way through one chain: its lengths, loss and latency."""
    for cuts in itertools.product([False, True], repeat=len(edges) - 1):
        ends = [place for place, cut in enumerate((*cuts, True)) if cut]
        starts = [0, *(end + 1 for end in ends[:-1])]
        if all(first in edges[last] for first, last in zip(starts, ends, strict=True)):
            steps = [edges[last][first] for first, last in zip(starts, ends, strict=True)]
            lengths = tuple(last - first + 1 for first, last in zip(starts, ends, strict=True))
            yield lengths, sum(step.loss for step in steps), sum(step.latency for step in steps)


def everything(all_edges: list[Edges]) -> list[Path]:
    return [
        Path(sum(each[1] for each in ways), sum(each[2] for each in ways), tuple(each[0] for each in ways))
        for ways in itertools.product(*(list(segmentations(edges)) for edges in all_edges))
    ]


@given(chains(), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_the_best_of_every_depth_are_the_best_of_all(all_edges: list[Edges], count: int) -> None:
    paths = everything(all_edges)
    found = best_by_depth(all_edges, count)
    assert list(found) == sorted({path.depth for path in paths})
    for depth, best in found.items():
        assert best == sorted(path for path in paths if path.depth == depth)[:count]


@given(chains())
@settings(max_examples=150, deadline=None)
def test_the_front_is_what_nothing_beats(all_edges: list[Edges]) -> None:
    paths = everything(all_edges)
    costs = {(path.latency, path.loss) for path in paths}
    expected = sorted(
        (latency, loss)
        for latency, loss in costs
        if not any(a <= latency and b <= loss and (a, b) != (latency, loss) for a, b in costs)
    )
    found = pareto(all_edges)
    assert [(path.latency, path.loss) for path in found] == expected
    assert set(found) <= set(paths)


@given(chains(), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_a_thinned_front_holds_paths_that_are_there_and_its_fastest(
    all_edges: list[Edges], labels: int
) -> None:
    paths, found = everything(all_edges), pareto(all_edges, labels)
    assert set(found) <= set(paths)
    assert len(found) <= labels
    assert found[0].latency == min(path.latency for path in paths)
    assert [path.latency for path in found] == sorted(path.latency for path in found)


def test_no_chain_is_one_empty_path() -> None:
    assert best_by_depth([]) == {0: [Path(0.0, 0.0, ())]}
    assert pareto([]) == [Path(0.0, 0.0, ())]


@pytest.mark.parametrize("count", [1, 4])
def test_a_long_chain_is_quick(count: int) -> None:
    """50 blocks, as of the 405B model; the loss of n blocks is n^3.5."""
    edges = [
        {first: Edge(float(last - first) ** 3.5, 1.0) for first in range(last + 1)} for last in range(50)
    ]
    found = best_by_depth([edges], count)
    assert list(found) == list(range(1, 51))
    assert sorted(found[10][0].lengths[0]) == [5] * 10
    assert [path.depth for path in pareto([edges])] == list(range(1, 51))
