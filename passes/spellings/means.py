"""Means over the last axis: what is centred by its own, and how one number a row is probed."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fxfuse.passes.elementwise import evaluate, region
from fxfuse.passes.records import Value
from fxfuse.passes.view import Op, Operand, View, op_of, strip

__all__ = ["MEANS", "as_rows", "centred", "covered", "is_mean", "reads"]

# Values that a mean may have; beside them stand mean squares of up to 1e4.
MEANS = torch.tensor([0.0, -0.5, 5e-4, 0.02, 2.0, -90.0], dtype=torch.float64)


def centred(view: View, operand: Operand, trail: set[Value]) -> tuple[str, Operand]:
    """("layer", x) where `operand` is x - mean(x), ("rms", x) otherwise, with casts passed over."""
    value = strip(view, operand, trail)
    op = op_of(view, value)
    if op is not None and op.kind in ("sub", "add") and len(op.inputs) == 2:
        pairs = [op.inputs, op.inputs[::-1]] if op.kind == "add" else [op.inputs]
        for source, shift in pairs:
            inner: set[Value] = set()
            sign = 1.0 if op.kind == "sub" else -1.0
            if _is_average(view, shift, strip(view, source, inner), sign, inner):
                trail |= inner | covered(view, [value])
                return "layer", strip(view, source)
    return "rms", value


def _is_average(view: View, shift: Operand, source: Operand, sign: float, trail: set[Value]) -> bool:
    """Whether `shift` is sign * mean(source), kept as a column."""
    if shift is None or isinstance(shift, (int, float)):
        return False
    inside = region(view, shift, lambda each: is_mean(view, each), 16, rowwise=True, whole=True)
    if len(inside.leaves) != 1 or inside.foreign or inside.dropout:
        return False
    (leaf,) = inside.leaves
    mean = op_of(view, leaf)
    if mean is None or not reads(view, mean, source, trail):
        return False
    values = as_rows(view, leaf, MEANS)
    try:
        found = evaluate(view, shift, {leaf: values}, torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    trail |= inside.interior | covered(view, [leaf])
    return found.shape[-2:] == (len(MEANS), 1) and torch.allclose(found.reshape(-1), sign * MEANS, rtol=1e-6)


def reads(view: View, mean: Op, source: Operand, trail: set[Value]) -> bool:
    """Whether `mean` is that of `source`."""
    return strip(view, mean.inputs[0], trail) == strip(view, source)


def is_mean(view: View, value: Operand) -> bool:
    """Whether a value is a mean over the last axis."""
    op = op_of(view, value)
    return op is not None and op.kind in ("mean", "row_mean")


def as_rows(view: View, mean: Value | Op, values: torch.Tensor) -> torch.Tensor:
    """One value a row; as a column where the mean keeps its axis."""
    op = op_of(view, mean)
    return values[:, None] if op is not None and op.kind == "mean" else values


def covered(view: View, operands: Iterable[Operand]) -> set[Value]:
    """The values of the graph that stand behind `operands`."""
    found: set[Value] = set()
    for each in operands:
        op = op_of(view, each)
        found.update(op.via if op is not None else ())
        found.update({each} if not isinstance(each, Op) else ())
    return found
