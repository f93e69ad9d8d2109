"""Two values that are computed alike: a norm that a graph computes once for the gate and once for the up."""

from __future__ import annotations

import torch

from fxfuse.passes.elementwise import FUNCTIONS, constant
from fxfuse.passes.records import Value
from fxfuse.passes.view import Op, Operand, View, is_constant, op_of, strip

__all__ = ["are_copies"]

_KINDS = {*FUNCTIONS, "mean", "row_mean", "rms_norm", "layer_norm"}
_LIMIT = 48


def are_copies(view: View, one: Operand, other: Operand, trail: set[Value]) -> bool:
    """Whether both are the same function of the same values; `trail` collects what `other` covers."""
    covered: set[Value] = set()
    if not _alike(view, one, other, covered, [_LIMIT]):
        return False
    trail |= covered
    return True


def _alike(view: View, one: Operand, other: Operand, covered: set[Value], left: list[int]) -> bool:
    if is_constant(view, one) and is_constant(view, other):
        return one == other or _equal(view, one, other)
    one, other = strip(view, one), strip(view, other, covered)
    if one == other:
        return True
    first, second = op_of(view, one), op_of(view, other)
    left[0] -= 1
    if first is None or second is None or left[0] < 0:
        return False
    same = first.kind == second.kind and first.attrs == second.attrs and first.kind in _KINDS
    if not same or len(first.inputs) != len(second.inputs) or first.attrs.get("active"):
        return False
    covered |= {*second.via} | (set() if isinstance(other, Op) or other is None else {other})
    return all(_alike(view, a, b, covered, left) for a, b in zip(first.inputs, second.inputs, strict=True))


def _equal(view: View, one: Operand, other: Operand) -> bool:
    """Whether two constants of a few numbers hold the same."""
    a, b = constant(view, one), constant(view, other)
    return a.shape == b.shape and bool(torch.equal(a, b))
