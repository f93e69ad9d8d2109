"""Teacher and student: torch models in any form, as functions from batches to logits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxfuse.distillation.copies import TorchModel, as_module, copy_module, hidden_size, prepare
from fxfuse.errors import InputError
from fxfuse.frontends.outputs import choose_output
from fxfuse.frontends.protocol import Batch

__all__ = ["Subject"]


class Subject:
    """One of the two models, as a copy in evaluation mode; what the user gave is never written to.

    A graph's assertions are left out, as they refuse the types that autocast makes, and its attention is
    written so that it trains fast. `rows` is the number of windows that a graph takes, where that is fixed.

    Args:
        model: What the user gave.
        role: "student" or "teacher", for what a user is told.
        weights: New tensors for its parameters by name; the others are shared with `model`.
    """

    def __init__(
        self, model: TorchModel, role: str, weights: Mapping[str, nn.Parameter] | None = None
    ) -> None:
        self.role = role
        self.module = copy_module(as_module(model, role), role, weights or {})
        prepare(self.module)
        self.inputs = _graph_inputs(self.module) if isinstance(self.module, fx.GraphModule) else None
        shapes = (self.inputs or {}).values()
        self.rows = next((shape[0] for shape in shapes if shape and shape[0] is not None), None)
        self._hidden_size = hidden_size(self.module)
        tensors = (*self.module.parameters(), *self.module.buffers())
        self.device = tensors[0].device if tensors else torch.device("cpu")

    def logits(self, batch: Batch) -> Tensor:
        """The logits `[windows, tokens, classes]` of a batch, on this model's device.

        Raises:
            InputError: The model does not run on the batch, or gives no logits for every token.
        """
        placed = {name: tensor.to(self.device) for name, tensor in batch.items()}
        args, kwargs = self._bind(placed)
        try:
            found = self.module(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(f"The {self.role} does not run on the data ({first}): check them.") from error
        return self._pick(found)

    def _bind(self, batch: dict[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A batch as the arguments of the call: by name, or in order where no name is known."""
        if self.inputs is None:
            known = inspect.signature(self.module.forward).parameters
            return ((), batch) if all(name in known for name in batch) else (tuple(batch.values()), {})
        flat = list(batch.values()) if not set(batch) & set(self.inputs) else self._by_name(batch)
        if len(flat) != len(self.inputs):
            raise InputError(
                f"The {self.role} takes {len(self.inputs)} inputs ({', '.join(self.inputs)}) but the data "
                f"hold {', '.join(batch)}: give the same."
            )
        for (name, shape), tensor in zip(self.inputs.items(), flat, strict=True):
            _check_shape(self.role, name, shape, tensor)
        assert isinstance(self.module, fx.GraphModule)
        info = getattr(self.module.graph._codegen, "pytree_info", None)
        if info is None or info.in_spec is None:
            return tuple(flat), {}
        found = pytree.tree_unflatten(flat, info.in_spec)
        return found if len(found) == 2 and isinstance(found[1], dict) else (tuple(found), {})

    def _by_name(self, batch: dict[str, Tensor]) -> list[Tensor]:
        assert self.inputs is not None
        unknown = [name for name in batch if name not in self.inputs]
        if unknown:
            raise InputError(
                f"The {self.role} takes no input {unknown[0]!r}: name the data as one of "
                f"{', '.join(self.inputs)}."
            )
        return [batch[name] for name in self.inputs if name in batch]

    def _pick(self, found: Any) -> Tensor:
        """The output that holds logits."""
        logits = getattr(found, "logits", None)
        if logits is None:
            named = found if isinstance(found, Mapping) else dict(enumerate(pytree.tree_leaves(found)))
            values = list(named.values())
            chosen = choose_output([str(name) for name in named], values, self._hidden_size)
            logits = values[chosen[0]] if chosen is not None and chosen[1] else None
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            raise InputError(
                f"No output of the {self.role} looks like logits of every token, [windows, tokens, classes]: "
                "give a model that returns them."
            )
        return logits


def _graph_inputs(module: fx.GraphModule) -> dict[str, tuple[int | None, ...] | None]:
    """The inputs of a graph by name, with their shapes: None where an axis is open, or nothing is known."""
    found: dict[str, tuple[int | None, ...] | None] = {}
    for node in module.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val", node.meta.get("example_value"))
        known = isinstance(value, Tensor)
        found[str(node.target)] = (
            tuple(size if isinstance(size, int) else None for size in value.shape) if known else None
        )
    return found


def _check_shape(role: str, name: str, shape: tuple[int | None, ...] | None, tensor: Tensor) -> None:
    pairs = zip(shape or tensor.shape, tensor.shape, strict=False)
    if shape is not None and (
        len(shape) != tensor.dim() or any(own not in (None, given) for own, given in pairs)
    ):
        axes = ["any" if size is None else str(size) for size in shape]
        raise InputError(
            f"The {role} takes {name} of [{', '.join(axes)}] only and the data are {list(tensor.shape)}: "
            "export it with open shapes, or give data of this size."
        )
