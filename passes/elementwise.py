"""Elementwise operators: what each computes, and the evaluation of whole regions made of them.

A spelled-out activation or the inside of a norm is recognised by what it computes at probe points, so one
entry here serves every way of writing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from fxfuse.passes.quantised import formulas
from fxfuse.passes.records import Value
from fxfuse.passes.view import Op, Operand, View, op_of

__all__ = ["FUNCTIONS", "SELU", "Region", "region", "evaluate", "constant"]


def _gelu(x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    return F.gelu(x, approximate=approximate)


def _quick_gelu(x: torch.Tensor, *, alpha: float = 1.702) -> torch.Tensor:
    return x * torch.sigmoid(alpha * x)


def _elu(
    x: torch.Tensor, *, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> torch.Tensor:
    return torch.where(x > 0, scale * x, scale * alpha * torch.expm1(input_scale * x))


SELU = {"alpha": 1.6732632423543772, "scale": 1.0507009873554805}  # selu is an elu with these

# Canonical name -> the function of tensors. Attributes of the operator arrive as keywords.
FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    **{name: getattr(torch, name) for name in (
        "add", "sub", "mul", "div", "pow", "maximum", "minimum", "where", "neg", "abs", "sign", "exp",
        "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "square", "sigmoid", "tanh", "erf", "erfc",
        "sin", "cos", "relu", "zeros_like", "ones_like",
    )},
    "greater": torch.gt, "less": torch.lt, "at_least": torch.ge, "at_most": torch.le,
    **{name: getattr(F, name) for name in (
        "silu", "mish", "softplus", "hardswish", "hardsigmoid", "hardtanh", "hardshrink", "softshrink",
        "tanhshrink", "logsigmoid", "leaky_relu", "prelu", "threshold",
    )},
    "gelu": _gelu,
    "quick_gelu": _quick_gelu,
    "elu": _elu,
    "full_like": lambda x, value: torch.zeros_like(x) + value,
    "cast": lambda x, **_: x,
    "pass": lambda x, **_: x,
    "dropout": lambda x, **_: x,
    "expand": lambda x: x,
    "column": lambda x: x.unsqueeze(-1),
    "transpose": lambda x: x.transpose(-1, -2),
    "part": lambda x, start, stop: x[..., start:stop],
    "rounded": lambda x, **_: x,
    **formulas.FUNCTIONS,
}  # fmt: skip
# Not elementwise, yet computed where a constant is made with them.
_REDUCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "mean": lambda x: x.mean(-1, keepdim=True),
    "row_mean": lambda x: x.mean(-1),
}
_ROWWISE = {"column", "expand"}
_RESHAPING = {"transpose", "part", *formulas.FUNCTIONS} | _ROWWISE


@dataclass
class Region:
    """The elementwise operators above one value, down to its leaves."""

    leaves: list[Value | Op] = field(default_factory=list)
    interior: set[Value] = field(default_factory=set)
    dropout: float | None = None  # the rate of a dropout that is active inside
    foreign: list[Operand] = field(default_factory=list)  # where the walk met something not elementwise
    places: list[Value] = field(default_factory=list)  # the values which these are, or hide in
    constants: list[Value] = field(default_factory=list)


def region(
    view: View,
    output: Operand,
    is_leaf: Callable[[Value | Op], bool],
    limit: int = 64,
    *,
    rowwise: bool = False,
    whole: bool = False,
) -> Region:
    """Walk up from `output` through elementwise operators to the values that `is_leaf` accepts.

    Constants are not walked into. At most `limit` operators are visited, so the walk costs constant time.
    With `rowwise`, one number for each row may be given an axis of its own and be broadcast. With `whole`,
    the walk ends where it meets the first operator that is not elementwise.
    """
    other = _RESHAPING - _ROWWISE if rowwise else _RESHAPING
    found = Region()
    stack: list[tuple[Operand, Operand]] = [(output, output)]
    seen: set[Value] = set()
    while stack:
        operand, place = stack.pop()
        if isinstance(operand, (int, float)) or operand is None or operand in seen:
            continue
        place = place if isinstance(operand, Op) else operand
        seen.add(operand)
        if not isinstance(operand, Op) and view.is_constant(operand):
            found.constants.append(operand)
            continue
        if is_leaf(operand):
            found.leaves.append(operand)
            continue
        op = op_of(view, operand)
        if op is None or op.kind not in FUNCTIONS or op.kind in other or len(seen) > limit:
            found.foreign.append(operand)
            found.places.append(place)
            if whole:
                break
            continue
        if op.kind == "dropout" and op.attrs["active"]:
            found.dropout = op.attrs["p"]
        found.interior.update(op.via)
        if not isinstance(operand, Op):
            found.interior.add(operand)
        stack.extend((each, place) for each in op.inputs)
    return found


def evaluate(
    view: View,
    operand: Operand,
    known: Mapping[Value, torch.Tensor],
    dtype: torch.dtype,
    *,
    cast: bool = False,
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
    if operand not in known:
        op = op_of(view, operand)
        computed = isinstance(operand, Op) or (op is not None and op.kind in FUNCTIONS)
        known[operand] = (
            _apply(view, op, known, dtype, cast) if op and computed else _as(view.stored(operand), dtype)
        )
    return known[operand]


def _apply(
    view: View, op: Op, known: dict[Value, torch.Tensor], dtype: torch.dtype, cast: bool
) -> torch.Tensor:
    args = [_evaluate(view, each, known, dtype, cast) for each in op.inputs]
    if op.kind == "cast":
        return args[0].to(getattr(torch, op.attrs["dtype"])) if cast else args[0]
    return _function(op)(*_on_one_device(args), **_keywords(op))


def _function(op: Op) -> Callable[..., torch.Tensor]:
    return FUNCTIONS.get(op.kind) or _REDUCTIONS[op.kind]


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
    if op is None or (op.kind not in FUNCTIONS and not isinstance(value, Op)):
        if isinstance(value, (int, float)) or value is None:
            raise ValueError("a literal is not a weight")
        return view.stored(value)
    given = [each if isinstance(each, (int, float)) else _stored(view, each) for each in op.inputs]
    like = next(each for each in given if isinstance(each, torch.Tensor))
    args = [each if isinstance(each, torch.Tensor) else like.new_tensor(each) for each in given]
    if op.kind == "cast":
        return args[0].to(getattr(torch, op.attrs["dtype"]))
    return _function(op)(*args, **_keywords(op))


def _keywords(op: Op) -> dict[str, object]:
    return {} if op.kind in ("pass", "dropout", "cast") else dict(op.attrs)


def _on_one_device(args: list[torch.Tensor]) -> list[torch.Tensor]:
    devices = [arg.device for arg in args if arg.dim()]
    return [arg.to(devices[0]) for arg in args] if devices else args
