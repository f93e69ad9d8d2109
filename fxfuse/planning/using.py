"""What a front end does with a plan: it is read before any work, its groups are taken as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fxfuse.budget import Budget
from fxfuse.errors import InputError
from fxfuse.naming import span
from fxfuse.numerics import GroupError
from fxfuse.passes.records import Block, Chain, Miss
from fxfuse.planning.files import AnyPlan, read_plan
from fxfuse.planning.greedy import Group
from fxfuse.planning.records import Plan
from fxfuse.report import GroupReport

__all__ = ["plan_for", "plan_notes", "planned_groups"]


def plan_for(source: AnyPlan | None, budget: Budget) -> Plan | None:
    """The plan to follow, if one is given.

    Raises:
        InputError: It cannot be read, or `budget` would choose groups beside it.
    """
    if source is None:
        return None
    for name in ("max_group", "include", "exclude"):
        if getattr(budget, name) is not None:
            raise InputError(f"{name} chooses groups, and so does the plan: give one of the two.")
    return read_plan(source)


def planned_groups(
    planned: Sequence[Sequence[Block]],
    chains: Sequence[Chain],
    measure: Callable[[Sequence[Block]], GroupError],
) -> tuple[list[Group], list[Miss]]:
    """The groups of a plan in the order of the graph, measured, and a miss for every other block."""
    blocks = [block for chain in chains for block in chain.blocks]
    groups = [Group(tuple(each), measure(each)) for each in planned]
    groups.sort(key=lambda group: blocks.index(group.blocks[0]))
    taken = {block.name for group in groups for block in group.blocks}
    left = [block.name for block in blocks if block.name not in taken]
    return groups, [Miss(name, "left sequential: the plan has it in no group") for name in left]


def plan_notes(plan: Plan, groups: Sequence[GroupReport], budget: Budget) -> list[str]:
    """What a user should know of groups that the plan asked for: its names, and losses over the budget."""
    planned = {name for group in plan.groups for name in group.blocks}
    notes = ["the groups follow the plan" + (f" made for {plan.model}" if plan.model else "")]
    renamed = next((name for group in groups for name in group.blocks if name not in planned), None)
    if renamed is not None:
        notes.append(
            f"the plan names the layers otherwise; one of its groups is {span(groups[0].blocks)} here"
        )
    for group in groups:
        if budget.min_sqnr is not None and group.sqnr_db < budget.min_sqnr:
            notes.append(
                f"the plan's group {span(group.blocks)} keeps {group.sqnr_db:.1f} dB, under the "
                f"{budget.min_sqnr:g} dB that a group has to keep without a plan"
            )
    return notes
