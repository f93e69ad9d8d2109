"""A model on the meta device is given its weights, one after the other, each read once.

At any time there is one tensor beside the model: as it is stored, until it has the type and device asked for.
Buffers that no checkpoint holds (rotary frequencies, an embedding's scale) are computed by transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fxfuse.checkpoints.tensors import Tensors
from fxfuse.errors import InputError

__all__ = ["fill", "fill_buffers"]


def fill(model: Any, tensors: Tensors, device_of: Callable[[str], torch.device]) -> None:
    """Read the weights of a model of transformers into it.

    Args:
        model: On the meta device, in the types that it shall have.
        tensors: The checkpoint's, which may hold more than the model has.
        device_of: Where a parameter or buffer goes, by its name.

    Raises:
        InputError: A tensor is missing or has another shape.
    """
    fill_buffers(model, device_of)
    missing = set()
    for name, old in model.state_dict().items():
        if name in tensors:
            _put(model, name, _read(tensors, name, old, device_of(name)))
        else:
            missing.add(name)
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    left = [name for name, value in model.state_dict().items() if value.is_meta]
    if left:
        raise InputError(f"{tensors.folder} holds no {left[0]}: copy the checkpoint anew.")


def _read(tensors: Tensors, name: str, old: torch.Tensor, device: torch.device) -> torch.Tensor:
    stored = tensors[name]
    if stored.shape != tuple(old.shape):
        raise InputError(
            f"{name} in {stored.file} has the shape {list(stored.shape)} where the config asks for "
            f"{list(old.shape)}: correct the config."
        )
    return tensors.read(name).to(device=device, dtype=old.dtype)


def _put(model: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._parameters:
        old = owner._parameters[leaf]
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=old is None or old.requires_grad)
    else:
        owner._buffers[leaf] = value


def fill_buffers(model: Any, device_of: Callable[[str], torch.device]) -> None:
    """Compute what no checkpoint holds, by the initialisation of the module that has it."""
    for path, module in model.named_modules():
        held = {
            leaf: old
            for leaf, old in module._buffers.items()
            if old is not None and old.is_meta and leaf in module._non_persistent_buffers_set
        }
        for leaf, old in held.items():
            module._buffers[leaf] = torch.empty_like(old, device=device_of(f"{path}.{leaf}"))
        if held:
            model._init_weights(module)
