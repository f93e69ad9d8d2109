"""Choose groups: as long as the budget allows, by measuring; a group that loses too much is halved and tried again.

Groups are contiguous, so halving ends at single blocks, which stay sequential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fxfuse.budget import Budget
from fxfuse.naming import span
from fxfuse.numerics import GroupError
from fxfuse.passes.records import Block, Chain, Miss

__all__ = ["Group", "choose_groups", "split_worst"]


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


def choose_groups(chains: Sequence[Chain], budget: Budget, measure: Measure) -> tuple[list[Group], list[Miss]]:
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
    worst = min(groups, key=lambda group: group.error.sqnr_db)
    place = groups.index(worst)
    halves: list[Group] = []
    misses: list[Miss] = []
    _halve(worst.blocks, budget, measure, halves, misses, reason)
    groups[place : place + 1] = halves
    return misses


def _divide(
    run: Sequence[Block], budget: Budget, measure: Measure, groups: list[Group], misses: list[Miss]
) -> None:
    if len(run) < 2:
        misses += [Miss(block.name, "left sequential: no neighbour is left to fuse it with") for block in run]
        return
    error = measure(run)
    if budget.min_sqnr is None or error.sqnr_db >= budget.min_sqnr:
        groups.append(Group(tuple(run), error))
        return
    names = span([block.name for block in run])
    reason = f"fusing {names} keeps {error.sqnr_db:.1f} dB, under the budget of {budget.min_sqnr:g} dB"
    _halve(run, budget, measure, groups, misses, reason)


def _halve(
    run: Sequence[Block], budget: Budget, measure: Measure, groups: list[Group], misses: list[Miss], reason: str
) -> None:
    if len(run) == 2:
        misses += [Miss(block.name, f"left sequential: {reason}") for block in run]
        return
    middle = -(-len(run) // 2)
    for part in (run[:middle], run[middle:]):
        if len(part) == 1:
            misses.append(Miss(part[0].name, f"left sequential: {reason}"))
        else:
            _divide(part, budget, measure, groups, misses)


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
