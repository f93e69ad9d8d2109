"""Constants applied to a value, one after the other: gains, biases, multipliers, LayerScale.

    y = (z * k1 + v1) / k2 ...

where each constant is one number, or one for each channel of the last axis.
"""

from __future__ import annotations

from collections.abc import Callable

from fxfuse.passes.elementwise import constant
from fxfuse.passes.records import Step, Value
from fxfuse.passes.view import Op, Operand, View, is_constant, op_of, strip

__all__ = ["peel", "peel_while", "is_per_channel"]


def peel(view: View, op: Op) -> tuple[Operand, tuple[Step, ...]] | None:
    """Split `op` into the value it works on and the constants it applies; None if it is not such a step."""
    if op.kind == "neg":
        return op.inputs[0], (Step("mul", -1.0),)
    if op.kind not in ("mul", "div", "add", "sub") or len(op.inputs) != 2:
        return None
    first, second = op.inputs
    if is_per_channel(view, second):
        return first, (Step("add", Op("neg", (second,))) if op.kind == "sub" else _step(op.kind, second),)
    if is_per_channel(view, first) and op.kind in ("mul", "add"):
        return second, (_step(op.kind, first),)
    if is_per_channel(view, first) and op.kind == "sub":
        return second, (Step("mul", -1.0), _step("add", first))
    return None


def peel_while(
    view: View, operand: Operand, accept: Callable[[Step], bool], trail: set[Value]
) -> tuple[Operand, tuple[Step, ...]]:
    """Peel steps off `operand`, casts in between included; the steps come back in order of application."""
    steps: list[Step] = []
    while True:
        passed: set[Value] = set()
        inner = strip(view, operand, passed)
        op = op_of(view, inner)
        peeled = peel(view, op) if op is not None else None
        if peeled is None or not accept(peeled[1][-1]):
            return operand, tuple(steps)
        trail |= passed | set(op.via if op else ())
        if not isinstance(inner, Op):
            trail.add(inner)
        operand = peeled[0]
        steps[:0] = peeled[1]


def is_per_channel(view: View, operand: Operand) -> bool:
    """Whether an operand is a constant with one number, or one for each channel of the last axis."""
    if not is_constant(view, operand):
        return False
    if isinstance(operand, (int, float)):
        return True
    op = op_of(view, operand)
    if isinstance(operand, Op):
        return all(is_per_channel(view, each) for each in operand.inputs)
    if op is not None and op.kind == "expand":
        return is_per_channel(view, op.inputs[0])
    shape = view.shape(operand)
    if shape is None:
        shape = tuple(constant(view, operand).shape)
    return all(size == 1 for size in shape[:-1])


def _step(kind: str, operand: Operand) -> Step:
    return Step(kind, operand)
