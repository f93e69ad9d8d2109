"""Why a branch with the products of an FFN was not read as a block, where no rule came far enough to say."""

from __future__ import annotations

from fxfuse.passes.branches import Branch, is_product
from fxfuse.passes.elementwise import FUNCTIONS
from fxfuse.passes.records import Value
from fxfuse.passes.stream import Update
from fxfuse.passes.view import Op, View, op_of

__all__ = ["near_ffn"]

_KNOWN = {*FUNCTIONS, "linear", "mean", "rms_norm", "layer_norm", "shape"}


def near_ffn(view: View, branch: Branch, update: Update) -> str:
    """One sentence on the first thing in a branch that no FFN has."""
    for value in branch.products:
        reason = _product(view, value)
        if reason is not None:
            return reason
    for value in reversed(branch.values):
        op = view.op(value)
        if op is not None and op.kind not in _KNOWN and not is_product(view, value):
            return f"between its products stands {op.kind} ({view.node_name(value)})"
    op = op_of(view, update.out)
    if op is not None and op.kind == "linear":
        return f"the residual add is the bias of a product ({view.node_name(update.out)})"
    count = len(branch.products)
    names = ", ".join(view.node_name(each) for each in branch.products[:4]) + (", ..." if count > 4 else "")
    return f"its {count} products do not form down(act(gate) * up) of one norm ({names})"


def _product(view: View, value: Value) -> str | None:
    """What sets a product apart from x times one stored matrix."""
    op = view.op(value)
    if op is None:
        return None
    if op.kind != "linear":
        shapes = [view.shape(each) for each in op.inputs if not isinstance(each, (Op, int, float)) and each]
        told = " with ".join("x".join("?" if n is None else str(n) for n in s) for s in shapes if s)
        what = f"{op.kind} ({told})" if told else op.kind
        return f"its product {view.node_name(value)} is {what}, not x times one stored matrix"
    weight = op.inputs[1]
    if isinstance(weight, Op) or not view.is_constant(weight):
        made = op_of(view, weight)
        how = f"by {made.kind}" if made is not None else "outside: it is a graph input"
        return f"the weight of {view.node_name(value)} is not stored but computed {how}"
    return None
