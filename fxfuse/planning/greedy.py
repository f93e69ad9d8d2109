"""Choose groups by measuring: each as long as the budget allows, from the front of the chain.

A run that loses too much is cut shorter and tried again; a block that no neighbour suits stays sequential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fxfuse.budget import Budget
from fxfuse.naming import span
from fxfuse.numerics import GroupError
from fxfuse.passes.records import Block, Chain, Miss

__all__ = ["Group", "choose_groups", "split_group", "split_worst"]


@dataclass(frozen=True)
class Group:
    """Consecutive blocks of a chain that become one wide FFN, with the loss that was measured."""

    blocks: tuple[Block, ...]
    error: GroupError

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its blocks, in order."""
        return tuple(block.name for block in self.blocks)


Measure = Callable[[Sequence[Block]], GroupError]


def choose_groups(
    chains: Sequence[Chain], budget: Budget, measure: Measure
) -> tuple[list[Group], list[Miss]]:
    """The groups of all chains within `budget`, and a miss for every block that it left sequential."""
    groups: list[Group] = []
    misses: list[Miss] = []
    for chain in chains:
        for run in _allowed(chain, budget, misses):
            for part in _pieces(run, budget.max_group or len(run)):
                _divide(part, budget, measure, groups, misses)
    return groups, misses


def split_worst(groups: list[Group], budget: Budget, measure: Measure, reason: str) -> list[Miss]:
    """Halve the group that loses most, in place; returns the misses that this makes."""
    place = min(range(len(groups)), key=lambda index: groups[index].error.sqnr_db)
    return split_group(groups, place, budget, measure, reason)


def split_group(groups: list[Group], place: int, budget: Budget, measure: Measure, reason: str) -> list[Miss]:
    """Halve one group, in place; returns the misses that this makes."""
    worst = groups[place]
    halves: list[Group] = []
    misses: list[Miss] = []
    middle = -(-len(worst.blocks) // 2)
    for part in (worst.blocks[:middle], worst.blocks[middle:]):
        if len(part) > 1:
            _divide(part, budget, measure, halves, misses)
        else:
            misses.append(Miss(part[0].name, f"left sequential: {reason}"))
    groups[place : place + 1] = halves
    return misses


def _divide(
    run: Sequence[Block], budget: Budget, measure: Measure, groups: list[Group], misses: list[Miss]
) -> None:
    """Take the longest group that the budget allows from the front, again and again."""
    reason = "no neighbour is left to fuse it with"
    while run:
        size, error, refusal = _longest(run, budget, measure)
        reason = refusal or reason
        if error is not None:
            groups.append(Group(tuple(run[:size]), error))
        else:
            misses.append(Miss(run[0].name, f"left sequential: {reason}"))
        run = run[size:]


def _longest(
    run: Sequence[Block], budget: Budget, measure: Measure
) -> tuple[int, GroupError | None, str | None]:
    """The longest allowed group at the front of `run`: its size, its loss, and why one more was refused.

    A longer group loses more, so the size is found by bisection; size 1 has no loss: the block stays.
    """
    fits: tuple[int, GroupError | None] = (1, None)
    refusal = None
    low, high, size = 1, len(run) + 1, len(run)
    while low + 1 < high:
        error = measure(run[:size])
        if budget.min_sqnr is None or error.sqnr_db >= budget.min_sqnr:
            low, fits = size, (size, error)
        else:
            high, refusal = size, _refusal(run[:size], error, budget)
        size = (low + high) // 2
    return *fits, refusal


def _refusal(run: Sequence[Block], error: GroupError, budget: Budget) -> str:
    names = span([block.name for block in run])
    return f"fusing {names} keeps {error.sqnr_db:.1f} dB, under the budget of {budget.min_sqnr:g} dB"


def _allowed(chain: Chain, budget: Budget, misses: list[Miss]) -> Iterator[list[Block]]:
    """The runs that include and exclude leave."""
    run: list[Block] = []
    for block in chain.blocks:
        reason = budget.allows(block.name)
        if reason is None:
            run.append(block)
            continue
        misses.append(Miss(block.name, reason))
        yield run
        run = []
    yield run


def _pieces(run: Sequence[Block], most: int) -> Iterator[Sequence[Block]]:
    """`run` in as few pieces of at most `most` blocks as there can be, of nearly equal length."""
    count = -(-len(run) // most) if run else 0
    for index in range(count):
        yield run[index * len(run) // count : (index + 1) * len(run) // count]
