"""Small integer arithmetic that exporters leave in a graph to compute the bounds of a Slice or a Split.

    Slice(y, 0, (Gather(Shape(y), -1) + 1) / 2)        the first half of a packed gate_up

What depends on an open size is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxfuse.passes.onnx.view import OnnxView

__all__ = ["fold_integers", "is_whole_shape"]

_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: int(a / b),
}
_PASSING = ("Cast", "Squeeze", "Unsqueeze", "Identity", "Reshape")


def is_whole_shape(node: Any) -> bool:
    """Whether a node gives the whole shape of its input."""
    return node.op == "Shape" and not node.attrs.get("start") and "end" not in node.attrs


def fold_integers(view: OnnxView, value: str, seen: list[str], depth: int = 12) -> list[int] | None:
    """The elements of `value` when they follow from constants and known sizes, else None."""
    stored = view.small(value)
    tensor = view.tensors.get(value)
    if stored is not None or tensor is None or not tensor.inputs or depth == 0:
        return stored
    node = tensor.inputs[0]
    if node.op not in (*_PASSING, *_ARITHMETIC, "Gather", "Concat"):
        return None
    seen.append(value)
    names = [each.name for each in node.inputs]
    if node.op == "Gather" and view.tensors[names[0]].inputs:
        return _size_of(view, names, seen, depth)
    inputs = [fold_integers(view, name, seen, depth - 1) for name in names]
    if any(each is None for each in inputs[: 1 if node.op in _PASSING else None]):
        return None
    return _compute(node, inputs)


def _compute(node: Any, inputs: list[Any]) -> list[int] | None:
    if node.op in _PASSING:
        return list(inputs[0])
    if node.op in _ARITHMETIC and len(inputs[0]) == len(inputs[1]) == 1:
        return [_ARITHMETIC[node.op](inputs[0][0], inputs[1][0])]
    if node.op == "Concat":
        return [each for part in inputs for each in part]
    return None


def _size_of(view: OnnxView, names: list[str], seen: list[str], depth: int) -> list[int] | None:
    """Gather(Shape(y), -1), where the width of y is known."""
    shape = view.tensors[names[0]].inputs[0]
    index = fold_integers(view, names[1], seen, depth - 1)
    if not is_whole_shape(shape) or index is None or len(index) != 1:
        return None
    source = shape.inputs[0].name
    known = view.shape(source)
    is_last = index[0] == -1 or (known is not None and index[0] == len(known) - 1)
    seen.append(names[0])
    size = view.width(source) if is_last else known[index[0]] if known is not None else None
    return None if size is None else [size]
