"""What an elementwise expression computes, as a key without the names of its graph.

    mul(h, sigmoid(h))   in layer 0, in layer 1 ...   one key: (leaf 0, sigmoid of 0, mul of 0 and 1)

The blocks of a model are alike, so what probing finds out about one expression is remembered for its equals.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from fxfuse.passes.elementwise import FUNCTIONS
from fxfuse.passes.records import Value
from fxfuse.passes.view import Op, Operand, View, op_of

__all__ = ["Memo", "recipe"]

Found = TypeVar("Found")
_LIMIT = 256


class Memo(Generic[Found]):
    """Remembers what was computed for the last few hundred keys; nothing for the key None."""

    def __init__(self) -> None:
        self._found: dict[Hashable, Found] = {}

    def get(self, key: Hashable | None, compute: Callable[[], Found]) -> Found:
        """What `compute` gives, or gave for this key before."""
        if key is None:
            return compute()
        if key not in self._found:
            if len(self._found) >= _LIMIT:
                self._found.clear()
            self._found[key] = compute()
        return self._found[key]


def recipe(view: View, output: Operand, leaves: Sequence[Value | Op]) -> tuple[Hashable, ...] | None:
    """A key that two expressions share only if they compute the same of their leaves.

    None where a constant has more than one element, or an operator is not elementwise.
    """
    rows: list[Hashable] = [("leaf", kind.kind if (kind := op_of(view, each)) else "") for each in leaves]
    places: dict[Operand, int] = {leaf: index for index, leaf in enumerate(leaves)}
    return tuple(rows) if _row(view, output, rows, places) is not None else None


def _row(view: View, operand: Operand, rows: list[Hashable], places: dict[Operand, int]) -> int | None:
    """The place of an operand among `rows`, which grow by what it is computed from."""
    key = operand if not isinstance(operand, (int, float)) else None
    if key is not None and key in places:
        return places[key]
    op = op_of(view, operand)
    row: Hashable
    if op is None or op.kind not in FUNCTIONS:
        row = _literal(view, operand)
    else:
        inputs = [_row(view, each, rows, places) for each in op.inputs]
        row = None if None in inputs else (op.kind, repr(sorted(op.attrs.items())), tuple(inputs))
    if row is None:
        return None
    rows.append(row)
    if key is not None:
        places[key] = len(rows) - 1
    return len(rows) - 1


def _literal(view: View, operand: Operand) -> Hashable:
    """A number, or a stored constant of one element."""
    if isinstance(operand, (int, float)):
        return repr(operand)
    if (
        operand is None
        or isinstance(operand, Op)
        or not view.is_constant(operand)
        or view.op(operand) is not None
    ):
        return None
    shape = view.shape(operand)
    if shape is None or any(size != 1 for size in shape):
        return None
    return repr(float(view.stored(operand))), shape
