"""The student: which of its parameters learn, in float32, and how they go back into a model of its kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxfuse.distillation.copies import TorchModel, as_module, copy_module
from fxfuse.distillation.subjects import Subject
from fxfuse.errors import InputError

__all__ = ["Student", "write_back"]


class Student(Subject):
    """A model that learns; `learned` are the parameters that do, by their first name.

    Of a module those learn that require grad, of a graph all, since what it was exported with says nothing;
    `trainable`, a regular expression that is searched for in their names, chooses instead where it is given.

    Raises:
        InputError: No parameter is to learn.
    """

    def __init__(self, model: TorchModel, trainable: str | None) -> None:
        own = _distinct(model)
        weights = {names[0]: nn.Parameter(own_.detach().clone(), own_.requires_grad) for names, own_ in own}
        everywhere = {name: weights[names[0]] for names, _ in own for name in names}
        super().__init__(model, "student", everywhere)
        whole = isinstance(model, (ExportedProgram, fx.GraphModule))
        self.learned: dict[str, nn.Parameter] = {}
        for names, _ in own:
            weight = weights[names[0]]
            learns = weight.is_floating_point() and (
                any(re.search(trainable, name) for name in names)
                if trainable
                else whole or weight.requires_grad
            )
            weight.requires_grad_(learns)
            if learns:
                self.learned[names[0]] = weight
        if not self.learned:
            raise InputError(_nothing_learns(trainable, [name for names, _ in own for name in names]))


def write_back(model: TorchModel, learned: Mapping[str, Tensor]) -> TorchModel:
    """A model like `model` with the learned values; everything else is shared with it."""
    weights: dict[str, nn.Parameter] = {}
    for names, tensor in _distinct(model):
        if names[0] in learned:
            value = learned[names[0]].detach().to(tensor.device, tensor.dtype, copy=True)
            weights |= dict.fromkeys(names, nn.Parameter(value, tensor.requires_grad))
    if not isinstance(model, ExportedProgram):
        return copy_module(model, "student", weights)
    state: dict[str, Any] = {name: weights.get(name, tensor) for name, tensor in model.state_dict.items()}
    root = copy_module(model.graph_module, "student", {})
    assert isinstance(root, fx.GraphModule)
    return ExportedProgram(
        root=root,
        graph=root.graph,
        graph_signature=model.graph_signature,
        state_dict=state,
        range_constraints=dict(model.range_constraints),
        module_call_graph=list(model.module_call_graph),
        example_inputs=model.example_inputs,
        constants=dict(model.constants),
        verifiers=model.verifiers,
    )


def _distinct(model: TorchModel) -> list[tuple[list[str], nn.Parameter]]:
    """Every parameter once, with all its names; a program from a file ties weights by their memory alone."""
    found: dict[tuple[Any, ...], tuple[list[str], nn.Parameter]] = {}
    for name, tensor in as_module(model, "student").named_parameters(remove_duplicate=False):
        key = (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype)
        found.setdefault(key, ([], tensor))[0].append(name)
    return list(found.values())


def _nothing_learns(trainable: str | None, names: list[str]) -> str:
    if trainable is None:
        return "No parameter of the student requires grad: say which are to learn with trainable."
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"No parameter that could learn matches trainable {trainable!r}: the student has {shown or 'none'}."
    )
