"""Calls of a torch.fx graph: which operator, with which arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx

__all__ = ["ASSERTIONS", "SHAPE_READERS", "Call", "Shapes", "dtype_of", "name_of"]

ASSERTIONS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range_for_size"}
SHAPE_READERS = {"sym_size", "size", "sym_numel", "numel", "dim", "shape", "ndim", "device", "dtype"}
_OWNERS = {"torch", "_operator", "builtins", "math"}

Shapes: TypeAlias = Callable[[Any], "tuple[int | None, ...] | None"]


class Call:
    """The arguments of one call, by position or keyword, and what is known of their shapes."""

    def __init__(self, node: fx.Node, shape: Shapes) -> None:
        self.node = node
        self.shape = shape

    def get(self, index: int, name: str, default: Any = None) -> Any:
        """The argument at `index`, or the keyword `name`, or `default`."""
        if len(self.node.args) > index:
            return self.node.args[index]
        return self.node.kwargs.get(name, default)

    def integer(self, value: Any) -> int | None:
        """An integer, also one that the graph computes where a tracer noted what it is."""
        if isinstance(value, fx.Node):
            value = value.meta.get("val", value.meta.get("example_value"))
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def width(self, value: Any) -> int | None:
        """The size of the last axis of `value`, if known."""
        shape = self.shape(value)
        return shape[-1] if shape else None

    def is_last(self, value: Any, dim: Any) -> bool:
        """Whether `dim` (an int or a list of one) names the last axis of `value`."""
        dims = list(dim) if isinstance(dim, (list, tuple)) else [dim]
        shape = self.shape(value)
        return dims == [-1] or (shape is not None and dims == [len(shape) - 1])


def name_of(node: fx.Node) -> str:
    """The operator's bare name: "add" for torch.add, operator.add, Tensor.add and aten.add.Tensor.

    An operator that is not torch's own keeps its namespace: another "silu" may be another function.
    """
    target = node.target
    if isinstance(target, str):
        return target
    if target is getattr:
        return str(node.args[1])
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        packet = target.overloadpacket if isinstance(target, torch._ops.OpOverload) else target
        space, _, name = packet._qualified_op_name.rpartition("::")
        return name if space in ("aten", "prims") else f"{space}::{name}"
    name, owner = getattr(target, "__name__", str(target)), getattr(target, "__module__", None) or "torch"
    return name if owner.partition(".")[0] in _OWNERS else f"{owner}.{name}"


def dtype_of(node: fx.Node) -> torch.dtype | None:
    """The element type that a tracer noted on `node`."""
    meta = node.meta.get("val", node.meta.get("example_value"))
    return getattr(meta, "dtype", None)
