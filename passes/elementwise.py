"""Elementwise operators: what each computes, and the evaluation of whole regions made of them.

A spelled-out activation or the inside of a norm is recognised by what it computes at probe points, so one
entry here serves every way of writing it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from fxfuse.passes.records import Value
from fxfuse.passes.view import Op, Operand, View, op_of

__all__ = ["FUNCTIONS", "Region", "region", "evaluate", "constant"]


def _gelu(x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    return F.gelu(x, approximate=approximate)


def _quick_gelu(x: torch.Tensor, *, alpha: float = 1.702) -> torch.Tensor:
    return x * torch.sigmoid(alpha * x)


# Canonical name -> the function of tensors. Attributes of the operator arrive as keywords.
FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "greater": torch.gt,
    "less": torch.lt,
    "where": torch.where,
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "square": torch.square,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "relu": torch.relu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "gelu": _gelu,
    "quick_gelu": _quick_gelu,
    "cast": lambda x, **_: x,
    "pass": lambda x, **_: x,
    "dropout": lambda x, **_: x,
    "transpose": lambda x: x.transpose(-1, -2),
    "part": lambda x, start, stop: x[..., start:stop],
}
_RESHAPING = {"transpose", "part"}


@dataclass
class Region:
    """The elementwise operators above one value, down to its leaves."""

    leaves: list[Value] = field(default_factory=list)
    interior: set[Value] = field(default_factory=set)
    dropout: float | None = None  # the rate of a dropout that is active inside
    foreign: list[Operand] = field(default_factory=list)  # where the walk met something not elementwise
    constants: list[Value] = field(default_factory=list)


def region(view: View, output: Operand, is_leaf: Callable[[Value], bool], limit: int = 64) -> Region:
    """Walk up from `output` through elementwise operators to the values that `is_leaf` accepts.

    Constants are not walked into. At most `limit` operators are visited, so the walk costs constant time.
    """
    found = Region()
    stack: list[Operand] = [output]
    seen: set[int | Value] = set()
    while stack:
        operand = stack.pop()
        if isinstance(operand, (int, float)) or operand is None:
            continue
        key = id(operand) if isinstance(operand, Op) else operand
        if key in seen:
            continue
        seen.add(key)
        if not isinstance(operand, Op):
            if view.is_constant(operand):
                found.constants.append(operand)
                continue
            if is_leaf(operand):
                found.leaves.append(operand)
                continue
        op = op_of(view, operand)
        if op is None or op.kind not in FUNCTIONS or op.kind in _RESHAPING or len(seen) > limit:
            found.foreign.append(operand)
            continue
        if op.kind == "dropout" and op.attrs["active"]:
            found.dropout = op.attrs["p"]
        found.interior.update(op.via)
        if not isinstance(operand, Op):
            found.interior.add(operand)
        stack.extend(op.inputs)
    return found


def evaluate(
    view: View, operand: Operand, known: dict[Value, torch.Tensor], dtype: torch.dtype, *, cast: bool = False
) -> torch.Tensor:
    """Compute `operand` from the values in `known` and the graph's constants, in `dtype`.

    With `cast`, casts written in the graph are carried out instead of being passed over.
    """
    return _evaluate(view, operand, dict(known), dtype, cast)


def _evaluate(
    view: View, operand: Operand, known: dict[Value, torch.Tensor], dtype: torch.dtype, cast: bool
) -> torch.Tensor:
    """As `evaluate`; `known` grows, so that a value that is read twice is computed once."""
    if operand is None:
        raise ValueError("an absent operand has no value")
    if isinstance(operand, (int, float)):
        return torch.tensor(operand, dtype=dtype)
    if isinstance(operand, Op):
        return _apply(view, operand, known, dtype, cast)
    if operand not in known:
        op = op_of(view, operand)
        known[operand] = (
            _as(view.stored(operand), dtype) if op is None else _apply(view, op, known, dtype, cast)
        )
    return known[operand]


def _apply(
    view: View, op: Op, known: dict[Value, torch.Tensor], dtype: torch.dtype, cast: bool
) -> torch.Tensor:
    args = [_evaluate(view, each, known, dtype, cast) for each in op.inputs]
    if op.kind == "cast":
        return args[0].to(getattr(torch, op.attrs["dtype"])) if cast else args[0]
    return FUNCTIONS[op.kind](*_on_one_device(args), **_keywords(op))


def _as(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() or dtype.is_floating_point else tensor


def constant(view: View, value: Operand, dtype: torch.dtype | None = torch.float64) -> torch.Tensor:
    """A constant expression of the graph (gain + 1, a transposed weight) as one tensor.

    `dtype` None keeps the stored type, which is meant for weights behind transposes and casts alone.
    """
    if dtype is None:
        return _stored(view, value)
    return evaluate(view, value, {}, dtype)


def _stored(view: View, value: Operand) -> torch.Tensor:
    op = op_of(view, value)
    if op is None:
        if isinstance(value, (int, float)) or value is None:
            raise ValueError("a literal is not a weight")
        return view.stored(value)
    args = [_stored(view, each) if not isinstance(each, (int, float)) else each for each in op.inputs]
    if op.kind == "cast":
        return args[0].to(getattr(torch, op.attrs["dtype"]))  # type: ignore[union-attr]
    return FUNCTIONS[op.kind](*args, **_keywords(op))


def _keywords(op: Op) -> dict[str, object]:
    return {} if op.kind in ("pass", "dropout", "cast") else dict(op.attrs)


def _on_one_device(args: list[torch.Tensor]) -> list[torch.Tensor]:
    devices = [arg.device for arg in args if arg.dim()]
    return [arg.to(devices[0]) for arg in args] if devices else args
