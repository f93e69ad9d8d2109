"""torch operators in canonical form, by name: one entry serves function, method and ATen overload alike."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from fxfuse.passes.fx.calls import Call, dtype_of
from fxfuse.passes.fx.norms import layer_norm, mean, rms_norm, var
from fxfuse.passes.fx.pieces import getitem, slice_last, transpose
from fxfuse.passes.view import Op

__all__ = ["HANDLERS"]


def _elementwise(kind: str, arity: int = 1) -> Callable[[Call], Op | None]:
    def handle(call: Call) -> Op | None:
        args: tuple[Any, ...] = call.node.args[:arity]
        return Op(kind, args) if len(args) == arity else None

    return handle


def _sum(kind: str) -> Callable[[Call], Op | None]:
    def handle(call: Call) -> Op | None:
        x, y = call.get(0, "input"), call.get(1, "other")
        alpha = call.node.kwargs.get("alpha", 1)
        return Op(kind, (x, y if alpha == 1 else Op("mul", (y, float(alpha)))))  # type: ignore[arg-type]

    return handle


def _rsub(call: Call) -> Op | None:
    return Op("sub", (call.get(1, "other"), call.get(0, "input")))


def _div(call: Call) -> Op | None:
    return (
        Op("div", (call.get(0, "input"), call.get(1, "other")))
        if not call.node.kwargs.get("rounding_mode")
        else None
    )


def _gelu(call: Call) -> Op:
    return Op("gelu", (call.get(0, "input"),), {"approximate": call.get(1, "approximate", "none")})


def _softplus(call: Call) -> Op | None:
    plain = call.get(1, "beta", 1) == 1 and call.get(2, "threshold", 20) == 20
    return Op("softplus", (call.get(0, "input"),)) if plain else None


def _clamp(call: Call) -> Op | None:
    value: Any = call.get(0, "input")
    for kind, bound in (("maximum", call.get(1, "min")), ("minimum", call.get(2, "max"))):
        value = value if bound is None else Op(kind, (value, bound))
    return value if isinstance(value, Op) else None


def _cast(call: Call) -> Op | None:
    out, source = call.node, call.get(0, "input")
    dtype = next(
        (each for each in (*out.args[1:], *out.kwargs.values()) if isinstance(each, torch.dtype)), None
    )
    dtype = dtype or _METHOD_DTYPES.get(str(out.target)) or dtype_of(out)
    if dtype is not None and not dtype.is_floating_point:
        return None
    return (
        Op("cast", (source,), {"dtype": str(dtype).removeprefix("torch.")})
        if dtype
        else Op("pass", (source,))
    )


_METHOD_DTYPES = {
    "float": torch.float32,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "double": torch.float64,
}


def _reshape(call: Call) -> Op | None:
    source = call.get(0, "input")
    before, after = call.width(source), call.width(call.node)
    return Op("pass", (source,)) if before is not None and before == after else None


def passing(call: Call) -> Op:
    return Op("pass", (call.get(0, "input"),))


def _dropout(call: Call) -> Op:
    p, training = call.get(1, "p", 0.5), call.get(2, "training", call.node.kwargs.get("train", True))
    return Op("dropout", (call.get(0, "input"),), {"active": bool(training) and p > 0, "p": p})


def _linear(call: Call) -> Op:
    inputs = (call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias"))
    return Op("linear", inputs, {"transposed": False})


def _matmul(call: Call) -> Op | None:
    x, weight = call.get(0, "input"), call.get(1, "other", call.node.kwargs.get("mat2"))
    shape = call.shape(weight)
    return (
        Op("linear", (x, weight, None), {"transposed": True})
        if shape is not None and len(shape) == 2
        else None
    )


def _addmm(call: Call) -> Op | None:
    plain = call.node.kwargs.get("alpha", 1) == 1 and call.node.kwargs.get("beta", 1) == 1
    inputs = (call.get(1, "mat1"), call.get(2, "mat2"), call.get(0, "input"))
    return Op("linear", inputs, {"transposed": True}) if plain else None


def _route(call: Call) -> Op:
    return Op("route", (call.get(0, "input"),))


HANDLERS: dict[str, Callable[[Call], Op | None]] = {
    # sums and products
    "add": _sum("add"), "iadd": _sum("add"), "add_": _sum("add"), "sub": _sum("sub"), "rsub": _rsub,
    "mul": _elementwise("mul", 2), "imul": _elementwise("mul", 2), "mul_": _elementwise("mul", 2),
    "div": _div, "truediv": _div, "div_": _div, "pow": _elementwise("pow", 2),
    # functions of one value
    **{name: _elementwise(name) for name in (
        "neg", "abs", "exp", "expm1", "log", "sqrt", "rsqrt", "reciprocal", "square",
        "sigmoid", "tanh", "erf", "relu", "silu", "mish",
    )},
    "maximum": _elementwise("maximum", 2), "minimum": _elementwise("minimum", 2),
    "gt": _elementwise("greater", 2), "lt": _elementwise("less", 2), "where": _elementwise("where", 3),
    "clamp": _clamp, "clamp_min": _clamp, "gelu": _gelu, "softplus": _softplus, "relu_": _elementwise("relu"),
    "silu_": _elementwise("silu"),
    # types
    **dict.fromkeys(
        ("to", "_to_copy", "type", "type_as", "float", "half", "bfloat16", "double", "convert_element_type"),
        _cast,
    ),
    # what changes no number
    **dict.fromkeys(
        ("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "identity", "item"), passing
    ),
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshape
    ),
    "dropout": _dropout, "native_dropout": _dropout,
    # norms
    "mean": mean, "var": var, "rms_norm": rms_norm, "layer_norm": layer_norm,
    # products with weights
    "linear": _linear, "matmul": _matmul, "mm": _matmul, "addmm": _addmm,
    # pieces
    "t": transpose, "T": transpose, "mT": transpose, "transpose": transpose, "permute": transpose,
    "getitem": getitem, "slice": slice_last, "narrow": lambda call: None,
    # experts
    "topk": _route, "grouped_mm": _route, "_grouped_mm": _route,
}  # fmt: skip
assert operator.getitem.__name__ == "getitem"
