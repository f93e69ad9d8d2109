"""Groups within the budget: each the longest allowed, and a reason for every block left sequential."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxfuse.budget import Budget
from fxfuse.numerics import GroupError
from fxfuse.passes.records import Block, Chain, Miss
from fxfuse.planning.greedy import Group, choose_groups, split_worst

Measure = Callable[[Sequence[Block]], GroupError]


def chain_of(count: int, prefix: str = "layers") -> Chain:
    blocks = [Mock(spec=Block) for _ in range(count)]
    for index, block in enumerate(blocks):
        block.name = f"{prefix}.{index}.mlp"
    return Chain(tuple(blocks))


def loses(decibels: Callable[[Sequence[str]], float]) -> Measure:
    return lambda blocks: GroupError(decibels([block.name for block in blocks]), 0.1, 0.9)


def falls_with_length(names: Sequence[str]) -> float:
    """30 dB for two blocks, 5 dB less for each more"""
    return 40.0 - 5.0 * len(names)


def choose(count: int, measure: Measure | None = None, **bounds: Any) -> tuple[list[int], list[Miss]]:
    groups, misses = choose_groups([chain_of(count)], Budget(**bounds), measure or loses(lambda _: 99.0))
    return [len(group.blocks) for group in groups], misses


@pytest.mark.parametrize(
    ("count", "bounds", "sizes"),
    [
        (6, {}, [6]),
        (6, {"max_group": 6}, [6]),
        (6, {"max_group": 4}, [3, 3]),
        (7, {"max_group": 3}, [2, 2, 3]),
        (5, {"max_group": 2}, [2, 2]),
        (3, {"max_group": 2}, [2]),
        (6, {"exclude": r"\.2\."}, [2, 3]),
        (6, {"include": r"\.[123]\."}, [3]),
        (6, {"exclude": r"\.[024]\."}, []),
        (6, {"include": "attention"}, []),
    ],
)
def test_sizes_of_groups(count: int, bounds: dict[str, Any], sizes: list[int]) -> None:
    chosen, misses = choose(count, **bounds)
    assert chosen == sizes
    assert len(misses) == count - sum(sizes)


@pytest.mark.parametrize(
    ("least", "sizes"), [(None, [8]), (0.0, [8]), (1.0, [7]), (20.0, [4, 4]), (30.0, [2] * 4)]
)
def test_each_group_is_the_longest_within_budget(least: float | None, sizes: list[int]) -> None:
    chosen, misses = choose(8, loses(falls_with_length), min_sqnr=least)
    assert chosen == sizes
    assert len(misses) == 8 - sum(sizes)


def test_an_odd_group_leaves_one_block() -> None:
    sizes, misses = choose(3, loses(falls_with_length), min_sqnr=30.0)
    assert sizes == [2]
    (miss,) = misses
    reason = "left sequential: fusing layers.0-2.mlp keeps 25.0 dB, under the budget of 30 dB"
    assert miss == Miss("layers.2.mlp", reason)


def test_every_block_of_a_pair_over_budget_is_a_miss() -> None:
    sizes, misses = choose(2, loses(lambda _: -3.25), min_sqnr=12.0)
    assert sizes == []
    reason = "left sequential: fusing layers.0-1.mlp keeps -3.2 dB, under the budget of 12 dB"
    assert misses == [Miss(f"layers.{index}.mlp", reason) for index in (0, 1)]


def test_one_bad_block_is_left_out() -> None:
    """Block 1 goes with no other; 2 to 5 do."""
    measure = loses(lambda names: 0.0 if "layers.1.mlp" in names else 50.0)
    sizes, misses = choose(6, measure)
    assert sizes == [4]
    assert [miss.where for miss in misses] == ["layers.0.mlp", "layers.1.mlp"]


def test_misses_of_include_exclude_and_lonely_blocks() -> None:
    _, misses = choose(4, include=r"\.[0123]\.", exclude=r"\.1\.")
    assert misses[0].reason == r"left out: --exclude '\\.1\\.' matches it"
    assert Miss("layers.0.mlp", "left sequential: no neighbour is left to fuse it with") in misses
    _, misses = choose(2, include="decoder")
    assert [miss.reason for miss in misses] == ["left out: --include 'decoder' does not match it"] * 2


def test_the_errors_are_those_that_were_measured() -> None:
    groups, _ = choose_groups([chain_of(2), chain_of(3, "tail")], Budget(), loses(falls_with_length))
    assert [group.error.sqnr_db for group in groups] == [30.0, 25.0]
    assert groups[1].names == ("tail.0.mlp", "tail.1.mlp", "tail.2.mlp")


def test_the_worst_group_is_split_in_place() -> None:
    measure = loses(falls_with_length)
    groups, _ = choose_groups([chain_of(2, "a"), chain_of(5, "b"), chain_of(3, "c")], Budget(), measure)
    assert split_worst(groups, Budget(), measure, "too much") == []
    assert [group.names[0] for group in groups] == ["a.0.mlp", "b.0.mlp", "b.3.mlp", "c.0.mlp"]
    assert [len(group.blocks) for group in groups] == [2, 3, 2, 3]


def test_splitting_a_pair_leaves_it_sequential() -> None:
    chain = chain_of(2)
    groups = [Group(chain.blocks, GroupError(3.0, 0.1, 0.9))]
    misses = split_worst(groups, Budget(), loses(falls_with_length), "the KL is over the budget")
    assert groups == []
    assert [miss.reason for miss in misses] == ["left sequential: the KL is over the budget"] * 2


@given(
    lengths=st.lists(st.integers(2, 9), max_size=4),
    most=st.none() | st.integers(2, 5),
    least=st.sampled_from([None, 0.0, 12.0, 25.0, 99.0]),
    excluded=st.none() | st.sampled_from([r"\.0\.", r"\.[13]\.", "b"]),
)
def test_every_block_is_in_one_group_or_is_one_miss(lengths, most, least, excluded) -> None:
    chains = [chain_of(length, "abcd"[index]) for index, length in enumerate(lengths)]
    budget = Budget(min_sqnr=least, max_group=most, exclude=excluded)
    groups, misses = choose_groups(chains, budget, loses(falls_with_length))
    names = [name for group in groups for name in group.names] + [miss.where for miss in misses]
    assert sorted(names) == sorted(block.name for chain in chains for block in chain.blocks)
    assert all(2 <= len(group.blocks) <= (most or 99) for group in groups)
    assert all(least is None or group.error.sqnr_db >= least for group in groups)
    for group in groups:
        (own,) = [chain for chain in chains if group.blocks[0] in chain.blocks]
        place = own.blocks.index(group.blocks[0])
        assert own.blocks[place : place + len(group.blocks)] == group.blocks
