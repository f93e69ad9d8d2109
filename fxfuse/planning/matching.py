"""A plan's layers in a graph: its groups as blocks, or one sentence that says why they are not to be had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fxfuse.errors import InputError
from fxfuse.naming import span
from fxfuse.passes.records import Block, Chain, Found
from fxfuse.planning.names import nearest, pair_names
from fxfuse.planning.records import Plan

__all__ = ["check_plan", "match_plan"]


def match_plan(plan: Plan, found: Found, *, part: bool = False) -> list[tuple[Block, ...]]:
    """The blocks of every group of `plan`, in its order.

    Args:
        plan: Made on this model in any form: names may have another prefix here.
        found: What `find_chains` saw in the graph.
        part: The graph may be a part of the model, as where torch.compile breaks it: groups of which it has
            no block are left out.

    Raises:
        InputError: The plan is for another model, names layers that are not there, or its groups overlap or
            are not consecutive blocks of one chain.
    """
    check_plan(plan)
    blocks = [block for chain in found.chains for block in chain.blocks] + list(found.singles)
    if part and not blocks:
        return []
    # Chains are in the order of the graph, blocks that stand alone come after them.
    pairs = pair_names(
        [name for name, _ in plan.id.blocks], [block.name for block in blocks], ordered=not found.singles
    )
    _check_model(plan, found, blocks, pairs, part)
    by_name = {block.name: block for block in blocks}
    groups = []
    for group in plan.groups:
        here = [name for name in group.blocks if name in pairs]
        if part and not here:
            continue
        missing = [name for name in group.blocks if name not in pairs]
        if missing:
            reason = _reason(found, missing) or (": this graph is a part of the model" if part else "")
            raise InputError(
                f"The plan fuses {span(group.blocks)}, but {missing[0]} is no block here{reason}."
            )
        groups.append(_in_a_chain([by_name[pairs[name]] for name in group.blocks], found))
    return groups


def check_plan(plan: Plan) -> None:
    """Whether the plan is at one with itself, as it may have been edited by hand.

    Raises:
        InputError: A group names a block that is not the model's, or fewer than two, or two groups one block.
    """
    known = [name for name, _ in plan.id.blocks]
    for group in plan.groups:
        for name in group.blocks:
            if name not in known:
                near = nearest(name, known) or ": correct the name."
                raise InputError(f"The plan names {name}, which is no block of its model{near}")
        if len(group.blocks) < 2:
            raise InputError(
                f"The plan has a group of {len(group.blocks)}: name at least two blocks in each."
            )
    counts = Counter(name for group in plan.groups for name in group.blocks)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise InputError(f"The plan's groups overlap: {twice} is named {counts[twice]} times.")


def _check_model(
    plan: Plan, found: Found, blocks: Sequence[Block], pairs: Mapping[str, str], part: bool
) -> None:
    """Whether the plan was made for this model; the first difference where it was not."""
    another = "The plan is for another model"
    widths = {block.name: block.intermediate_size for block in blocks}
    if not blocks:
        reason = f": {found.misses[0].where}: {found.misses[0].reason}" if found.misses else ""
        raise InputError(f"The plan has {len(plan.id.blocks)} FFN blocks, and none was found here{reason}.")
    if blocks[0].hidden_size != plan.id.hidden_size:
        here = blocks[0].hidden_size
        raise InputError(f"{another}: its hidden size is {plan.id.hidden_size}, and here it is {here}.")
    if not pairs:
        raise InputError(f"{another}: its first block is {plan.id.blocks[0][0]}, and here {blocks[0].name}.")
    for name, width in plan.id.blocks:
        if name in pairs and widths[pairs[name]] != width:
            here = widths[pairs[name]]
            raise InputError(f"{another}: {name} is {width} wide there, and {here} wide here.")
    if part:
        return
    for name, _ in plan.id.blocks:
        if name not in pairs and not _reason(found, [name]):
            raise InputError(f"{another}: it has {name}, and this model has no such block.")
    extra = next((block.name for block in blocks if block.name not in pairs.values()), None)
    if extra is not None:
        raise InputError(f"{another}: this one has {extra}, which that one does not.")


def _in_a_chain(blocks: Sequence[Block], found: Found) -> tuple[Block, ...]:
    """`blocks`, as what stands in one chain with nothing between them."""
    chain = _chain_of(blocks[0], found.chains)
    last = next((block for block in blocks if chain is None or block not in chain.blocks), None)
    where = span([block.name for block in blocks])
    if chain is None or last is not None:
        later = [block.name for block in blocks[1:]]
        reason = _reason(found, later) or ": attention or something else stands between them"
        raise InputError(f"The plan fuses {where}, but they are not in one chain of this model{reason}.")
    first = chain.blocks.index(blocks[0])
    expected = chain.blocks[first : first + len(blocks)]
    if tuple(blocks) != expected:
        wrong = next(one for one, other in zip(blocks, (*expected, None), strict=False) if one != other)
        after = blocks[list(blocks).index(wrong) - 1].name
        raise InputError(
            f"The plan fuses {where}, but {wrong.name} does not follow {after}: name consecutive blocks."
        )
    return tuple(blocks)


def _chain_of(block: Block, chains: Sequence[Chain]) -> Chain | None:
    return next((chain for chain in chains if block in chain.blocks), None)


def _reason(found: Found, names: Sequence[str]) -> str:
    """The matcher's own reason at one of `names`, as the end of a sentence."""
    reasons = {miss.where: miss.reason for miss in found.misses}
    named = pair_names(names, list(reasons), ordered=False)
    return next((f": {reasons[named[name]]}" for name in names if name in named), "")
