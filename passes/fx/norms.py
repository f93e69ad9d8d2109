"""Norms and their means in canonical form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fxfuse.passes.fx.calls import Call, dtype_of, name_of
from fxfuse.passes.view import Op, Operand

__all__ = ["layer_norm", "mean", "norm", "normalize", "of_both", "rms_norm", "std", "total", "var"]


def mean(call: Call) -> Op | None:
    """A mean over the last axis; one over others keeps which."""
    x, axes, kept = call.get(0, "input"), call.get(1, "dim"), call.get(2, "keepdim", False)
    if not call.is_last(x, axes):
        axes = tuple(axes) if isinstance(axes, (list, tuple)) else (axes,)
        return Op("another mean", (x,), {} if None in axes else {"axes": axes, "kept": kept})
    return Op("mean" if kept else "row_mean", (x,))


def total(call: Call) -> Op | None:
    """A sum over the last axis, as mean(x) * width."""
    width, average = call.width(call.get(0, "input")), mean(call)
    plain = width is not None and average is not None and average.kind != "another mean"
    return Op("mul", (average, float(width or 0))) if plain else None


def norm(call: Call) -> Op | None:
    """The length of each row, as sqrt(mean(x^2) * width)."""
    x, width = call.get(0, "input"), call.width(call.get(0, "input"))
    first, dim, kept = _order_of(call)
    if width is None or first not in (2, 2.0, "fro") or not call.is_last(x, dim):
        return None
    average = Op("mean" if kept else "row_mean", (Op("square", (x,)),))
    return Op("sqrt", (Op("mul", (average, float(width))),))


def _order_of(call: Call) -> tuple[Any, Any, bool]:
    """Which norm, over which axis, and whether this is kept; left out, the order is 2."""
    name = "p" if name_of(call.node) == "norm" else "ord"
    order = call.get(1, name, 2)
    return 2 if order is None else order, call.get(2, "dim"), bool(call.get(3, "keepdim", False))


def normalize(call: Call) -> Op | None:
    """What F.normalize computes: x / max(|x|, eps)."""
    x, width = call.get(0, "input"), call.width(call.get(0, "input"))
    if width is None or call.get(1, "p", 2.0) != 2 or not call.is_last(x, call.get(2, "dim", 1)):
        return None
    length = Op("sqrt", (Op("mul", (Op("mean", (Op("square", (x,)),)), float(width))),))
    return Op("div", (x, Op("maximum", (length, call.get(3, "eps", 1e-12)))))


def var(call: Call) -> Op | None:
    """The variance over the last axis, as mean((x - mean(x))^2), times n / (n - 1) where it is unbiased."""
    x, width = call.get(0, "input"), call.width(call.get(0, "input"))
    correction, kept = _correction(call)
    if width is None or not 0 <= correction < width or not call.is_last(x, call.get(1, "dim")):
        return None
    spread = Op("square", (Op("sub", (x, Op("mean", (x,)))),))
    biased = Op("mean" if kept else "row_mean", (spread,))
    return biased if correction == 0 else Op("mul", (biased, width / (width - correction)))


def _correction(call: Call) -> tuple[float, bool]:
    """What is taken off the count, and whether the axis is kept: var(x, dim, unbiased, keepdim)."""
    correction, unbiased = call.node.kwargs.get("correction"), call.get(2, "unbiased")
    told = correction if unbiased is None else unbiased
    return _number(told, 1.0), bool(call.get(3, "keepdim", False))


def _number(value: Any, default: float) -> float:
    """A number, `default` for None, NaN for one that the graph computes."""
    if value is None:
        return default
    return float(value) if isinstance(value, (int, float)) else math.nan


def std(call: Call) -> Op | None:
    """The standard deviation over the last axis."""
    spread = var(call)
    return None if spread is None else Op("sqrt", (spread,))


def of_both(call: Call, index: int) -> Op | None:
    """One of the two outputs of var_mean or std_mean."""
    if index == 0:
        return var(call) if name_of(call.node) == "var_mean" else std(call)
    if not call.is_last(call.get(0, "input"), call.get(1, "dim")):
        return None
    return Op("mean" if _correction(call)[1] else "row_mean", (call.get(0, "input"),))


def rms_norm(call: Call) -> Op:
    """RMSNorm over the last axis; an eps left out is that of the type."""
    x, shape, gain = call.get(0, "input"), call.get(1, "normalized_shape"), call.get(2, "weight")
    eps = call.get(3, "eps")
    if _rank(shape) != 1:
        return _over_more("rms_norm", x, _rank(shape))
    if eps is None:
        known = dtype_of(x) if isinstance(x, fx.Node) else None
        # Torch takes the resolution of the type it computes in, which is at least float32.
        eps = torch.finfo(torch.promote_types(known or torch.float32, torch.float32)).eps
    return Op("rms_norm", (x, gain), {"eps": eps})


def layer_norm(call: Call) -> Op:
    """LayerNorm over the last axis."""
    x, shape = call.get(0, "input"), call.get(1, "normalized_shape")
    inputs = (x, call.get(2, "weight"), call.get(3, "bias"))
    if _rank(shape) != 1:
        return _over_more("layer_norm", x, _rank(shape))
    return Op("layer_norm", inputs, {"eps": call.get(4, "eps", 1e-5)})


def _over_more(kind: str, x: Operand, rank: int) -> Op:
    return Op(f"another {kind}", (x,), {"axes": tuple(range(-rank, 0))} if rank else {})


def _rank(shape: Any) -> int:
    """How many axes a normalized_shape names; 0 where the graph computes it and no tracer noted it."""
    if isinstance(shape, fx.Node):
        shape = shape.meta.get("val", shape.meta.get("example_value"))
    return len(shape) if isinstance(shape, (list, tuple)) else 0
