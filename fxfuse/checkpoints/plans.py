"""A plan's groups as layers of a checkpoint: blocks have the names that torch and ONNX give their modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fxfuse.checkpoints.records import Checkpoint, Group, Layer
from fxfuse.errors import InputError, NothingToDo
from fxfuse.planning.files import AnyPlan, read_plan
from fxfuse.planning.matching import check_plan
from fxfuse.planning.names import pair_names
from fxfuse.planning.records import Plan

__all__ = ["block_names", "plan_notes", "planned_groups"]


def block_names(checkpoint: Checkpoint) -> dict[str, Layer]:
    """The layers that have an FFN, by what a plan calls it: "model.layers.7.mlp"."""
    path = checkpoint.family.down.rpartition(".")[0]
    return {f"{checkpoint.prefix(layer.number)}.{path}": layer for layer in checkpoint.layers if layer.ffn}


def planned_groups(checkpoint: Checkpoint, source: AnyPlan) -> list[Group]:
    """The groups of a plan that was made on this model, in any form of it.

    Raises:
        InputError: It is no plan, or is for another model.
        NothingToDo: It has no groups.
    """
    plan = read_plan(source)
    check_plan(plan)
    if not plan.groups:
        raise NothingToDo("The plan has no groups, so there is nothing to fuse: plan with a larger budget.")
    layers = block_names(checkpoint)
    pairs = pair_names([name for name, _ in plan.id.blocks], list(layers), ordered=True)
    _check_model(plan, checkpoint, layers, pairs)
    return [tuple(layers[pairs[name]].number for name in group.blocks) for group in plan.groups]


def plan_notes(plan: Plan, folder: Path) -> list[str]:
    """What to know of a plan that was made under another model's name than the folder's.

    It may be the same model in another form, or after training: blocks are all that a plan knows it by.
    """
    there, here = Path(str(plan.model)).name, folder.resolve().name
    if there in ("", here):
        return []
    return [
        f"the plan was made on {there}: its blocks match those of {here} in name and width, and whether the "
        "two are one model is not known"
    ]


def _check_model(
    plan: Plan, checkpoint: Checkpoint, layers: Mapping[str, Layer], pairs: Mapping[str, str]
) -> None:
    """Whether the plan was made for this model; the first difference where it was not."""
    another, here = "The plan is for another model", checkpoint.hidden_size
    if plan.id.hidden_size != here:
        raise InputError(f"{another}: its hidden size is {plan.id.hidden_size}, and here it is {here}.")
    for name, width in plan.id.blocks:
        if name not in pairs:
            raise InputError(f"{another}: it has {name}, and this checkpoint has no such block.")
        found = layers[pairs[name]].intermediate_size
        if found != width:
            raise InputError(f"{another}: {name} is {width} wide there, and {found} wide here.")
    extra = next((name for name in layers if name not in pairs.values()), None)
    if extra is not None:
        raise InputError(f"{another}: this one has {extra}, which that one does not.")
