"""torch operators in canonical form, by name: one entry serves function, method and ATen overload alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxfuse.passes.elementwise import SELU
from fxfuse.passes.fx.calls import Call, dtype_of
from fxfuse.passes.fx.layout import expand, reshape, transpose, unsqueeze
from fxfuse.passes.fx.norms import layer_norm, mean, norm, normalize, rms_norm, std, total, var
from fxfuse.passes.fx.pieces import getitem, glu, narrow, select, slice_last
from fxfuse.passes.fx.products import addmm, einsum, linear, matmul, tensordot
from fxfuse.passes.view import Op

__all__ = ["HANDLERS"]


def _elementwise(kind: str, *names: str, **attributes: Any) -> Callable[[Call], Op | None]:
    """A handler for `kind` of the tensors `names`, then numbers with their defaults."""

    def handle(call: Call) -> Op | None:
        inputs = tuple(call.get(index, name) for index, name in enumerate(names or ("input",)))
        attrs = {
            name: call.get(len(inputs) + index, name, default)
            for index, (name, default) in enumerate(attributes.items())
        }
        known = all(isinstance(each, (int, float, str)) for each in attrs.values())
        return Op(kind, inputs, attrs) if known and None not in inputs else None

    return handle


_TWO = ("input", "other")


def _sum(kind: str) -> Callable[[Call], Op | None]:
    def handle(call: Call) -> Op | None:
        x, y = call.get(0, "input"), call.get(1, "other")
        alpha = call.node.kwargs.get("alpha", 1)
        if kind == "add" and any(_is_number(each, 0) for each in (x, y)):
            return Op("pass", (y if _is_number(x, 0) else x,)) if alpha == 1 else None
        return Op(kind, (x, y if alpha == 1 else Op("mul", (y, alpha))))  # type: ignore[arg-type]

    return handle


def _product(call: Call) -> Op | None:
    x, y = call.get(0, "input"), call.get(1, "other")
    if any(_is_number(each, 1) for each in (x, y)):
        return Op("pass", (y if _is_number(x, 1) else x,))
    return None if x is None or y is None else Op("mul", (x, y))


def _is_number(value: Any, number: int) -> bool:
    return isinstance(value, (int, float)) and value == number


def _rsub(call: Call) -> Op | None:
    return Op("sub", (call.get(1, "other"), call.get(0, "input")))


def _div(call: Call) -> Op | None:
    return (
        Op("div", (call.get(0, "input"), call.get(1, "other")))
        if not call.node.kwargs.get("rounding_mode")
        else None
    )


def _larger(kind: str) -> Callable[[Call], Op | None]:
    """The larger of two values; with a number it is a reduction."""

    def handle(call: Call) -> Op | None:
        other = call.get(1, "other")
        return Op(kind, (call.get(0, "input"), other)) if isinstance(other, fx.Node) else None

    return handle


def _scaled_sum(kind: str) -> Callable[[Call], Op | None]:
    """What addcmul and addcdiv compute: x + value * a * b, x + value * a / b."""

    def handle(call: Call) -> Op | None:
        value = call.node.kwargs.get("value", 1)
        if not isinstance(value, (int, float)) or len(call.node.args) > 3:
            return None
        product = Op(kind, (call.get(1, "tensor1"), call.get(2, "tensor2")))
        product = product if value == 1 else Op("mul", (product, value))
        return Op("add", (call.get(0, "input"), product))

    return handle


def _masked_fill(call: Call) -> Op:
    return Op("where", (call.get(1, "mask"), call.get(2, "value"), call.get(0, "input")))


def _elu(call: Call) -> Op | None:
    """Written F.elu(x, alpha, inplace) or aten.elu(x, alpha, scale, input_scale)."""
    numbers = [each for each in call.node.args[1:4] if not isinstance(each, bool)]
    attrs = dict(zip(("alpha", "scale", "input_scale"), numbers, strict=False))
    attrs |= {name: each for name, each in call.node.kwargs.items() if name in _ELU}
    known = all(isinstance(each, (int, float)) for each in attrs.values())
    return Op("elu", (call.get(0, "input"),), attrs) if known else None


_ELU = ("alpha", "scale", "input_scale")


def _celu(call: Call) -> Op | None:
    alpha = call.get(1, "alpha", 1.0)
    known = isinstance(alpha, (int, float)) and alpha != 0
    return Op("elu", (call.get(0, "input"),), {"alpha": alpha, "input_scale": 1 / alpha}) if known else None


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


def passing(call: Call) -> Op:
    return Op("pass", (call.get(0, "input"),))


def _dropout(call: Call) -> Op:
    p, training = call.get(1, "p", 0.5), call.get(2, "training", call.node.kwargs.get("train", True))
    return Op("dropout", (call.get(0, "input"),), {"active": bool(training) and p > 0, "p": p})


def _route(call: Call) -> Op:
    return Op("route", (call.get(0, "input"),))


HANDLERS: dict[str, Callable[[Call], Op | None]] = {
    # sums and products; a trailing "_" (in place) is taken off before a name is looked up
    **dict.fromkeys(("add", "iadd"), _sum("add")), **dict.fromkeys(("sub", "subtract", "isub"), _sum("sub")),
    "rsub": _rsub, **dict.fromkeys(("mul", "multiply", "imul"), _product),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv", "itruediv"), _div),
    **dict.fromkeys(("pow", "ipow"), _elementwise("pow", "input", "exponent")),
    "addcmul": _scaled_sum("mul"), "addcdiv": _scaled_sum("div"),
    # functions of one value
    **{name: _elementwise(name) for name in (
        "neg", "abs", "sign", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "square",
        "sigmoid", "tanh", "erf", "erfc", "sin", "cos", "relu", "silu", "mish", "zeros_like", "ones_like",
        "hardswish", "hardsigmoid", "tanhshrink",
    )},
    "special_expit": _elementwise("sigmoid"), "special_erfc": _elementwise("erfc"),
    "negative": _elementwise("neg"), "absolute": _elementwise("abs"),
    **dict.fromkeys(("logsigmoid", "log_sigmoid"), _elementwise("logsigmoid")),
    "gelu": _elementwise("gelu", approximate="none"),
    "softplus": _elementwise("softplus", beta=1, threshold=20),
    "leaky_relu": _elementwise("leaky_relu", negative_slope=0.01),
    "elu": _elu, "celu": _celu, "selu": lambda call: Op("elu", (call.get(0, "input"),), SELU),
    **dict.fromkeys(("prelu", "_prelu_kernel"), _elementwise("prelu", "input", "weight")),
    "hardtanh": _elementwise("hardtanh", min_val=-1.0, max_val=1.0),
    "relu6": lambda call: Op("hardtanh", (call.get(0, "input"),), {"min_val": 0.0, "max_val": 6.0}),
    "hardshrink": _elementwise("hardshrink", lambd=0.5), "softshrink": _elementwise("softshrink", lambd=0.5),
    **dict.fromkeys(("threshold", "_threshold"), _elementwise("threshold", threshold=0, value=0)),
    # comparisons and choices
    "maximum": _elementwise("maximum", *_TWO), "minimum": _elementwise("minimum", *_TWO),
    "max": _larger("maximum"), "min": _larger("minimum"),
    "gt": _elementwise("greater", *_TWO), "lt": _elementwise("less", *_TWO),
    "ge": _elementwise("at_least", *_TWO), "le": _elementwise("at_most", *_TWO),
    "where": _elementwise("where", "condition", "input", "other"), "masked_fill": _masked_fill,
    "full_like": _elementwise("full_like", "input", "fill_value"),
    **dict.fromkeys(("clamp", "clip", "clamp_min"), _clamp),
    "clamp_max": _elementwise("minimum", "input", "max"),
    # types
    **dict.fromkeys(
        ("to", "_to_copy", "type", "type_as", "float", "half", "bfloat16", "double", "convert_element_type"),
        _cast,
    ),
    # what changes no number
    **dict.fromkeys(
        ("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "identity", "item"), passing
    ),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze"), reshape),
    "unsqueeze": unsqueeze, **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    **dict.fromkeys((
        "dropout", "native_dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout",
        "dropout1d", "dropout2d", "dropout3d",
    ), _dropout),
    # norms
    "mean": mean, "sum": total, "var": var, "std": std, "rms_norm": rms_norm, "layer_norm": layer_norm,
    **dict.fromkeys(("norm", "linalg_norm", "linalg_vector_norm"), norm), "normalize": normalize,
    # products with weights
    "linear": linear, **dict.fromkeys(("matmul", "mm", "bmm"), matmul),
    **dict.fromkeys(("addmm", "baddbmm"), addmm), "einsum": einsum, "tensordot": tensordot,
    # pieces
    **dict.fromkeys(("t", "T", "mT", "transpose", "permute", "swapaxes", "movedim"), transpose),
    "getitem": getitem, "slice": slice_last, "narrow": narrow, "select": select, "glu": glu,
    # experts
    "topk": _route, "grouped_mm": _route, "_grouped_mm": _route,
}  # fmt: skip
