"""The inputs that a model asks for beside the ids: masks, positions, lengths and an empty cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fxfuse.calibration.batches import leading, length_of
from fxfuse.drawing import draw_inputs, is_derived
from fxfuse.frontends.protocol import Batch
from fxfuse.inputs import check_sample
from fxfuse.passes.onnx.view import to_numpy, to_torch
from fxfuse.specs import InputSpec

__all__ = ["complete", "fixed_sizes"]


def complete(batch: Batch, specs: Sequence[InputSpec]) -> Batch:
    """Bring a batch to a model's inputs, in their order and types.

    What follows from the ids is added where it is missing: masks of ones, positions from zero, lengths, an
    empty cache. Ids under another name than the model's take the model's, if both have one such input;
    inputs named by place ("0", "1", ...) take the names in order. A mask, positions and the like that the
    model does not read are left out where they say nothing but what is so anyway.

    Raises:
        InputError: An input is missing that nothing tells, does not fit, or is not the model's.
    """
    given = _named(batch, specs)
    count, length = len(leading(batch)), length_of(batch)
    drawn = draw_inputs(specs, 0, batch=count, sequence=length)[0]
    arrays = {name: to_numpy(tensor) for name, tensor in given.items()}
    for spec in specs:
        if spec.name not in arrays and is_derived(spec):
            arrays[spec.name] = drawn[spec.name]
    checked = check_sample("The calibration batch", arrays, specs)
    return {name: to_torch(value) for name, value in checked.items()}


def fixed_sizes(specs: Sequence[InputSpec]) -> tuple[int | None, int | None]:
    """The windows of a batch and the tokens of a window, each None where the model leaves it open."""
    shapes = [spec.shape for spec in specs if not is_derived(spec)]
    first = (*shapes[0], None, None)[:2] if shapes else (None, None)
    count, length = (size if isinstance(size, int) else None for size in first)
    return count, length


def _named(batch: Batch, specs: Sequence[InputSpec]) -> dict[str, Tensor]:
    """The batch under the model's names, without what the model does not need to be told."""
    names = [spec.name for spec in specs]
    given = dict(batch)
    if all(name.isdecimal() for name in given) and len(given) <= len(names):
        given = {names[int(name)]: tensor for name, tensor in given.items() if int(name) < len(names)}
    asked = [spec for spec in specs if not is_derived(spec)]
    free = [name for name in given if name not in names and not _is_derived(name, given[name])]
    missing = [spec.name for spec in asked if spec.name not in given]
    if len(free) == len(missing) == 1:
        given[missing[0]] = given.pop(free[0])
    return {
        name: each for name, each in given.items() if name in names or not _says_nothing(name, each, given)
    }


def _spec(name: str, tensor: Tensor) -> InputSpec:
    return InputSpec(name, to_numpy(tensor[:0] if tensor.dim() else tensor).dtype, tuple(tensor.shape))


def _is_derived(name: str, tensor: Tensor) -> bool:
    return is_derived(_spec(name, tensor))


def _says_nothing(name: str, tensor: Tensor, given: Mapping[str, Tensor]) -> bool:
    """Whether an input holds what would be filled in for it."""
    if not _is_derived(name, tensor):
        return False
    count, length = len(leading(given)), length_of(given)
    filled = draw_inputs([_spec(name, tensor)], 0, batch=count, sequence=length)[0][name]
    return bool(torch.equal(to_torch(filled), tensor.cpu()))
