"""Which values of an ONNX graph may be taken for constants: those that can be read and computed here."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

__all__ = ["BROADCASTING", "DEEPEST", "UNREADABLE", "may_broadcast"]

BROADCASTING = ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "where", "greater", "less")
"""Kinds whose operands must fit together."""

DEEPEST = 64
"""Steps in which a constant may be computed: walks over constants are recursive."""

UNREADABLE = {
    number
    for name, number in onnx.TensorProto.DataType.items()
    if name in ("UNDEFINED", "STRING") or name.startswith(("FLOAT8", "FLOAT4"))
}
"""Element types that have no tensor in torch by way of NumPy."""


def may_broadcast(shapes: Sequence[tuple[int | None, ...] | None]) -> bool:
    """Whether shapes may be broadcast together, as far as they are known."""
    sizes: dict[int, set[int]] = {}
    for shape in shapes:
        for axis, size in enumerate(reversed(shape or ())):
            sizes.setdefault(axis, set()).add(1 if size is None else size)
    return all(len(each - {1}) <= 1 for each in sizes.values())
