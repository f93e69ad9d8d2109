"""Cross attention: queries of one stream, keys and values of another or of an input of their own."""

from __future__ import annotations

from fxfuse.passes.branches import Branch, Branches, is_product
from fxfuse.passes.records import Value
from fxfuse.passes.stream import values_in
from fxfuse.passes.view import Op, Operand, View

__all__ = ["is_cross"]

_SELF = ("GroupQueryAttention", "PagedAttention", "SparseAttention")
"""Operators that are self attention by what they are; queries, keys and values may be packed."""
_REACH = 64


def is_cross(view: View, branches: Branches, part: Branch, own: frozenset[Value]) -> bool:
    """Whether an attention's keys and values come from elsewhere than the stream `own` of its queries."""
    if branches.reads_elsewhere(part, own):
        return True
    mixing = [value for value in part.values if _mixes(view, value)]
    return bool(mixing) and all(_mixes_elsewhere(view, branches, value) for value in mixing)


def _mixes_elsewhere(view: View, branches: Branches, value: Value) -> bool:
    """Whether an operator has one matrix of the stream, and takes another from a product elsewhere."""
    op, matrices = view.op(value), _matrices(view, value)
    own = [branches.state_of(each) is not None for each in matrices]
    if op is None or op.kind in _SELF or sum(own) > 1:
        return False
    others = [each for each, is_own in zip(matrices, own, strict=True) if not is_own]
    return any(_is_projected(view, each) for each in others)


def _is_projected(view: View, operand: Operand) -> bool:
    """Whether a value is a product that is not of the stream, or such keys and values as an input."""
    stack, seen = list(values_in(Op("", (operand,)))), set[Value]()
    while stack and len(seen) < _REACH:
        value = stack.pop()
        op = view.op(value)
        if value in seen or view.is_constant(value) or (op is not None and op.kind == "shape"):
            continue
        seen.add(value)
        if is_product(view, value) or (op is None and _holds_vectors(view, value)):
            return True
        stack += list(values_in(op)) if op is not None else []
    return False


def _holds_vectors(view: View, value: Value) -> bool:
    shape, dtype = view.shape(value), view.dtype(value)
    return "float" in (dtype or "") and shape is not None and len(shape) > 2


def _mixes(view: View, value: Value) -> bool:
    """Whether an operator takes matrices that are no weights: queries with keys, or with all of them."""
    op = view.op(value)
    named = op is not None and "attention" in op.kind.lower()
    return named or (is_product(view, value) and len(_matrices(view, value)) > 1)


def _matrices(view: View, value: Value) -> list[Operand]:
    """Queries, keys and values of an operator that mixes, as far as they are no weights."""
    op = view.op(value)
    operands = op.inputs[: 3 if "attention" in op.kind.lower() else 2] if op is not None else ()
    return [each for each in operands if each is not None and not _is_weight(view, each)]


def _is_weight(view: View, operand: Operand) -> bool:
    if isinstance(operand, Op):
        return all(_is_weight(view, each) for each in operand.inputs if each is not None)
    return operand is None or isinstance(operand, (int, float)) or view.is_constant(operand)
