"""Operators that move numbers about without changing any: reshapes, transposes, broadcasts.

A chain of reshapes keeps the order of the numbers, so wherever the last axis is as wide as at its start, rows
are what they were, however they were cut and joined in between (an einsum falls apart into six such steps).
"""

from __future__ import annotations

from typing import Any

from torch import fx

from fxfuse.passes.fx.calls import Call, name_of
from fxfuse.passes.view import Op

__all__ = ["RESHAPES", "expand", "matrix_of", "reshape", "transpose", "unsqueeze"]

RESHAPES = {"view", "reshape", "_unsafe_view", "unflatten"}
_ORDERLY = {*RESHAPES, "flatten", "squeeze", "unsqueeze"}
_TURNS = {"t", "T", "mT", "transpose", "permute", "swapaxes", "movedim"}
_LIMIT = 12


def reshape(call: Call) -> Op | None:
    """A reshape that keeps the last axis, or gives it back."""
    width, source = call.width(call.node), call.get(0, "input")
    via: list[fx.Node] = []
    while width is not None and len(via) < _LIMIT:
        if call.width(source) == width:
            return Op("pass", (source,), via=tuple(via))
        if not isinstance(source, fx.Node) or not _keeps_order(call, source):
            return None
        via.append(source)
        source = source.args[0]
    return None


def unsqueeze(call: Call) -> Op | None:
    """A new axis: the last one makes a column."""
    source, dim = call.get(0, "input"), call.get(1, "dim")
    shape = call.shape(source)
    is_column = dim == -1 or (shape is not None and dim == len(shape))
    return Op("column", (source,)) if is_column else reshape(call)


def expand(call: Call) -> Op | None:
    """A value broadcast; where its shape stays, it is the value itself."""
    source = call.get(0, "input")
    before, after = call.shape(source), call.shape(call.node)
    if before is None or after is None:
        return None
    same = before == after and None not in before
    return Op("pass" if same else "expand", (source,))


def transpose(call: Call) -> Op | None:
    """The two axes of a matrix swapped; None for anything else that changes the order."""
    shape, order = call.shape(call.get(0, "input")), _permutation(call)
    if shape is None or order is None:
        return None
    if order == list(range(len(shape))):
        return Op("pass", (call.get(0, "input"),))
    if len(shape) == 2:
        return Op("transpose", (call.get(0, "input"),))
    return reshape(call) if _keeps_order(call, call.node) else None


def matrix_of(call: Call, weight: Any) -> tuple[Any, bool] | None:
    """The matrix that `weight` is or repeats for every batch, and whether it is turned; None for others."""
    turned = False
    for _ in range(_LIMIT):
        shape = call.shape(weight)
        if shape is None or len(shape) < 2 or None in shape[-2:]:
            return None
        if len(shape) == 2:
            return weight, turned
        step = _step_of(call, weight, shape)
        if step is None:
            return None
        weight, turned = weight.args[0], turned ^ step
    return None


def _step_of(call: Call, node: Any, shape: tuple[int | None, ...]) -> bool | None:
    """Whether a call turns the matrix that it is given; None where it does anything else with it."""
    if not isinstance(node, fx.Node) or not node.op.startswith("call_") or not node.args:
        return None
    before = call.shape(node.args[0])
    if before is None:
        return None
    if name_of(node) in ("expand", "broadcast_to"):
        repeated = before[-2:] == shape[-2:] and all(size == 1 for size in before[:-2])
        return False if repeated else None
    if name_of(node) in _ORDERLY:
        return False if before == shape or _sizes(before) == _sizes(shape) else None
    order = _permutation(Call(node, call.shape)) if name_of(node) in _TURNS else None
    if order is not None and order[:-2] == list(range(len(order) - 2)):
        return order[-2] > order[-1]
    real = [axis for axis in order or () if before[axis] != 1]
    return real != sorted(real) if len(real) == 2 else None


def _sizes(shape: tuple[int | None, ...]) -> list[int | None]:
    return [size for size in shape if size != 1]


def _keeps_order(call: Call, node: fx.Node) -> bool:
    """Whether a call leaves the numbers in their order, axes of size 1 apart."""
    if node.op not in ("call_function", "call_method") or not node.args:
        return False
    if name_of(node) in _ORDERLY:
        return True
    shape = call.shape(node.args[0])
    order = _permutation(Call(node, call.shape)) if name_of(node) in _TURNS else None
    real = [axis for axis in order or () if shape is not None and shape[axis] != 1]
    return order is not None and real == sorted(real)


def _permutation(call: Call) -> list[int] | None:
    """Where each axis of the result comes from."""
    shape, name = call.shape(call.get(0, "input")), name_of(call.node)
    if shape is None:
        return None
    rank = len(shape)
    if name in ("t", "T", "mT"):
        return _swapped(rank, rank - 2, rank - 1) if rank == 2 or (name == "mT" and rank > 2) else None
    given: tuple[Any, ...] = (*call.node.args[1:], *call.node.kwargs.values())
    dims = [each for arg in given for each in (arg if isinstance(arg, (list, tuple)) else [arg])]
    if not all(isinstance(each, int) and -rank <= each < rank for each in dims):
        return None
    dims = [each % rank for each in dims]
    if name == "permute":
        return dims if sorted(dims) == list(range(rank)) else None
    if len(dims) != 2:
        return None
    return _moved(rank, *dims) if name == "movedim" else _swapped(rank, *dims)


def _swapped(rank: int, one: int, other: int) -> list[int]:
    order = list(range(rank))
    order[one], order[other] = order[other], order[one]
    return order


def _moved(rank: int, source: int, target: int) -> list[int]:
    order = [axis for axis in range(rank) if axis != source]
    return [*order[:target], source, *order[target:]]
