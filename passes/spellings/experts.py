"""Mixtures of experts: a router's choice (top-k of a product) marks a layer that is not one FFN."""

from __future__ import annotations

from fxfuse.passes.elementwise import FUNCTIONS
from fxfuse.passes.records import Miss, Value
from fxfuse.passes.view import View, op_of

__all__ = ["match_experts"]


def match_experts(view: View, value: Value) -> Miss | None:
    """A `Miss` where `value` is a router's choice, None elsewhere."""
    op = view.op(value)
    if op is None or op.kind != "route" or not op.inputs:
        return None
    operand = op.inputs[0]
    for _ in range(12):
        inner = op_of(view, operand)
        if inner is None:
            return None
        if inner.kind == "linear":
            scope = view.scope(value)
            layer, _, last = scope.rpartition(".")
            where = layer if last in ("gate", "router") and layer else scope or view.node_name(value)
            return Miss(
                where, f"a router chooses experts here ({view.node_name(value)}): they are not one FFN"
            )
        if inner.kind not in FUNCTIONS and inner.kind.strip("_").lower() not in (
            "softmax",
            "reshape",
            "view",
        ):
            return None
        operand = inner.inputs[0]
    return None
