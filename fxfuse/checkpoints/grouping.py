"""Which FFNs become one: all runs, layers that a user names, or a plan.

    layer 41          layer 42 .. 50       layer 51
    attention, FFN    FFN ... FFN          attention, FFN
               ------------------          ----------
               one run                     the next

An FFN comes after its own layer's attention, so the first layer of a run may have some; layers that hold
nothing are no obstacle.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from fxfuse.checkpoints.records import Checkpoint, Group, Layer
from fxfuse.errors import InputError, NothingToDo
from fxfuse.planning.files import AnyPlan

__all__ = ["check_groups", "choose_groups", "runs"]


def choose_groups(
    checkpoint: Checkpoint,
    groups: str | None = None,
    plan: AnyPlan | None = None,
    *,
    auto: bool = False,
    max_group: int | None = None,
) -> list[Group]:
    """The groups that a user asks for in one of three ways.

    Args:
        checkpoint: As `open_checkpoint` found it.
        groups: First and last layers, as "42-50,53-69".
        plan: A plan's file, its JSON or the object, made on the same model in any form.
        auto: Every run, whole.
        max_group: Most FFNs in a group of `auto`; longer runs are cut into parts of like lengths.

    Raises:
        InputError: None or several ways are given, or what is asked for is not to be had.
        NothingToDo: There is no run, or the plan has no groups.
    """
    if sum((groups is not None, plan is not None, auto)) != 1:
        raise InputError("Give one of groups, plan and auto: they say which FFNs become one.")
    if max_group is not None and not auto:
        raise InputError("max_group cuts the runs of auto: give auto with it, or leave it out.")
    if plan is not None:
        from fxfuse.checkpoints.plans import planned_groups

        return check_groups(checkpoint, planned_groups(checkpoint, plan))
    if groups is not None:
        return check_groups(checkpoint, list(_named(checkpoint, groups)))
    return _automatic(checkpoint, max_group)


def runs(checkpoint: Checkpoint) -> list[Group]:
    """Every maximal run of two or more FFNs with no attention between, by numbers of layers."""
    found: list[list[int]] = []
    begins = True
    for layer in checkpoint.layers:
        begins = begins or layer.attention
        if layer.ffn and (begins or not found):
            found.append([layer.number])
            begins = False
        elif layer.ffn:
            found[-1].append(layer.number)
    return [tuple(each) for each in found if len(each) > 1]


def check_groups(checkpoint: Checkpoint, groups: Sequence[Group]) -> list[Group]:
    """The groups in their order, each of which can become one FFN.

    Raises:
        InputError: A group names a layer that is not there or has no FFN, has attention within, is of one
            layer, holds its weights in several types, or two overlap.
    """
    ordered = sorted(tuple(sorted(group)) for group in groups)
    for group in ordered:
        _check(checkpoint, group)
    for one, other in zip(ordered, ordered[1:], strict=False):
        if one[-1] >= other[0]:
            raise InputError(f"The groups {_told(one)} and {_told(other)} overlap: give each layer once.")
    return ordered


def _check(checkpoint: Checkpoint, group: Group) -> None:
    last = len(checkpoint.layers) - 1
    outside = next((number for number in group if not 0 <= number <= last), None)
    if outside is not None:
        raise InputError(f"There is no layer {outside}: this checkpoint has layers 0 to {last}.")
    if len(group) < 2:
        raise InputError(f"A group of {len(group)} FFN ({_told(group)}) changes nothing: name two or more.")
    layers = checkpoint.layers[group[0] : group[-1] + 1]
    for layer in layers:
        _check_layer(layer, group)
    _check_types(checkpoint, group)


def _check_layer(layer: Layer, group: Group) -> None:
    if layer.number != group[0] and layer.attention:
        raise InputError(
            f"Layer {layer.number} has attention, so that {_told(group)} is not one run: begin a group there."
        )
    if layer.number in group and not layer.ffn:
        raise InputError(f"Layer {layer.number} has no FFN: leave it out of {_told(group)}.")
    if layer.number not in group and layer.ffn:
        raise InputError(f"Layer {layer.number} stands within {_told(group)}: name it too, or two groups.")


def _check_types(checkpoint: Checkpoint, group: Group) -> None:
    """Whether the weights of a group can lie in one tensor."""
    for name in checkpoint.family.ffn_weights:
        names = [f"{checkpoint.prefix(number)}.{name}.weight" for number in group]
        types = [checkpoint.tensors[each].dtype for each in names]
        other = next((place for place, each in enumerate(types) if each != types[0]), None)
        if other is not None:
            raise InputError(
                f"{names[0]} is of type {types[0]} and {names[other]} of {types[other]}: convert them to one "
                "type before fusing."
            )


def _named(checkpoint: Checkpoint, text: str) -> Iterator[Group]:
    """The groups of "42-50,53-69"; layers that hold nothing drop out."""
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", part)
        if match is None or int(match[1]) >= int(match[2]):
            raise InputError(f"{part!r} is no group: give first and last layers, as in 42-50,53-69.")
        last = len(checkpoint.layers) - 1
        if int(match[2]) > last:
            raise InputError(f"There is no layer {match[2]}: this checkpoint has layers 0 to {last}.")
        numbers = range(int(match[1]), int(match[2]) + 1)
        empty = [n for n in numbers if not checkpoint.layers[n].ffn and not checkpoint.layers[n].attention]
        yield tuple(number for number in numbers if number not in empty)


def _automatic(checkpoint: Checkpoint, max_group: int | None) -> list[Group]:
    if max_group is not None and max_group < 2:
        raise InputError(f"max_group is {max_group}: give 2 or more.")
    found = [part for run in runs(checkpoint) for part in _parts(run, max_group or len(run))]
    if not found:
        raise NothingToDo(
            f"No two FFNs of {checkpoint.folder} stand one behind the other with no attention between: "
            "remove attention first, with fxfuse remove, or at once with --remove."
        )
    return check_groups(checkpoint, found)


def _parts(run: Group, most: int) -> Iterator[Group]:
    """A run in as few parts as may be, of lengths that differ by one at most; a part of one stays alone."""
    count = math.ceil(len(run) / most)
    for index in range(count):
        part = run[len(run) * index // count : len(run) * (index + 1) // count]
        if len(part) > 1:
            yield part


def _told(group: Group) -> str:
    return f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0])
