"""torch operators in canonical form, by name: one entry serves function, method and ATen overload alike."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxfuse.passes.view import Op

__all__ = ["HANDLERS", "SHAPE_READERS", "ASSERTIONS", "Call", "name_of"]

ASSERTIONS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range_for_size"}
SHAPE_READERS = {"sym_size", "size", "sym_numel", "numel", "dim", "shape", "ndim", "device", "dtype"}


_OWNERS = {"torch", "_operator", "builtins", "math"}


class Call:
    """The arguments of one call, by position or keyword, and what is known of their shapes."""

    def __init__(self, node: fx.Node, shape: Callable[[Any], tuple[int | None, ...] | None]) -> None:
        self.node = node
        self.shape = shape

    def get(self, index: int, name: str, default: Any = None) -> Any:
        """The argument at `index`, or the keyword `name`, or `default`."""
        if len(self.node.args) > index:
            return self.node.args[index]
        return self.node.kwargs.get(name, default)

    def width(self, value: Any) -> int | None:
        """The size of the last axis of `value`, if known."""
        shape = self.shape(value)
        return shape[-1] if shape else None

    def is_last(self, value: Any, dim: Any) -> bool:
        """Whether `dim` (an int or a list of one) names the last axis of `value`."""
        dims = list(dim) if isinstance(dim, (list, tuple)) else [dim]
        shape = self.shape(value)
        return dims == [-1] or (shape is not None and dims == [len(shape) - 1])


def name_of(node: fx.Node) -> str:
    """The operator's bare name: "add" for torch.add, operator.add, Tensor.add and aten.add.Tensor.

    An operator that is not torch's own keeps its namespace: another "silu" may be another function.
    """
    target = node.target
    if isinstance(target, str):
        return target
    if target is getattr:
        return str(node.args[1])
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        packet = target.overloadpacket if isinstance(target, torch._ops.OpOverload) else target
        space, _, name = packet._qualified_op_name.rpartition("::")
        return name if space in ("aten", "prims") else f"{space}::{name}"
    name, owner = getattr(target, "__name__", str(target)), getattr(target, "__module__", None) or "torch"
    return name if owner.partition(".")[0] in _OWNERS else f"{owner}.{name}"


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
    dtype = dtype or _METHOD_DTYPES.get(str(out.target)) or _dtype_of(out)
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


def _dtype_of(node: fx.Node) -> torch.dtype | None:
    meta = node.meta.get("val", node.meta.get("example_value"))
    return getattr(meta, "dtype", None)


def _reshape(call: Call) -> Op | None:
    source = call.get(0, "input")
    before, after = call.width(source), call.width(call.node)
    return Op("pass", (source,)) if before is not None and before == after else None


def _passing(call: Call) -> Op:
    return Op("pass", (call.get(0, "input"),))


def _dropout(call: Call) -> Op:
    p, training = call.get(1, "p", 0.5), call.get(2, "training", call.node.kwargs.get("train", True))
    return Op("dropout", (call.get(0, "input"),), {"active": bool(training) and p > 0, "p": p})


def _mean(call: Call) -> Op | None:
    x = call.get(0, "input")
    kept = call.get(2, "keepdim", False)
    return Op("mean", (x,)) if kept and call.is_last(x, call.get(1, "dim")) else None


def _var(call: Call) -> Op | None:
    x, kwargs = call.get(0, "input"), call.node.kwargs
    biased = kwargs.get("correction") == 0 or kwargs.get("unbiased", call.get(2, "", True)) is False
    if not (biased and kwargs.get("keepdim", call.get(3, "", False)) and call.is_last(x, call.get(1, "dim"))):
        return None
    return Op("mean", (Op("square", (Op("sub", (x, Op("mean", (x,)))),)),))


def _rms_norm(call: Call) -> Op | None:
    x, shape, gain = call.get(0, "input"), call.get(1, "normalized_shape"), call.get(2, "weight")
    eps = call.get(3, "eps")
    if len(shape) != 1:
        return None
    if eps is None:
        known = _dtype_of(x) if isinstance(x, fx.Node) else None
        # Torch takes the resolution of the type it computes in, which is at least float32.
        eps = torch.finfo(torch.promote_types(known or torch.float32, torch.float32)).eps
    return Op("rms_norm", (x, gain), {"eps": eps})


def _layer_norm(call: Call) -> Op | None:
    x, shape = call.get(0, "input"), call.get(1, "normalized_shape")
    inputs = (x, call.get(2, "weight"), call.get(3, "bias"))
    return Op("layer_norm", inputs, {"eps": call.get(4, "eps", 1e-5)}) if len(shape) == 1 else None


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


def _transpose(call: Call) -> Op | None:
    shape = call.shape(call.get(0, "input"))
    if shape is None or len(shape) != 2:
        return None
    args: tuple[Any, ...] = call.node.args[1:]
    dims = [each for arg in args for each in (arg if isinstance(arg, (list, tuple)) else [arg])]
    swapped = name_of(call.node) in ("t", "T", "mT") or sorted(d % 2 for d in dims) == [0, 1]
    if name_of(call.node) == "permute" and [d % 2 for d in dims] == [0, 1]:
        return _passing(call)
    return Op("transpose", (call.get(0, "input"),)) if swapped else None


def _getitem(call: Call) -> Op | None:
    args: tuple[Any, ...] = call.node.args
    source, index = args
    if isinstance(source, fx.Node) and isinstance(index, int):
        return _output_of(call, source, index)
    if isinstance(index, tuple) and len(index) == 2 and index[0] is Ellipsis and isinstance(index[1], slice):
        return _part(call, source, index[1].start, index[1].stop) if index[1].step in (None, 1) else None
    return None


def _slice(call: Call) -> Op | None:
    x = call.get(0, "input")
    if not call.is_last(x, call.get(1, "dim", 0)) or call.get(4, "step", 1) != 1:
        return None
    return _part(call, x, call.get(2, "start"), call.get(3, "end"))


def _part(call: Call, source: Any, start: Any, stop: Any) -> Op | None:
    width = call.width(source)
    if width is None or not all(each is None or isinstance(each, int) for each in (start, stop)):
        return None
    start, stop, _ = slice(start, stop).indices(width)
    return Op("part", (source,), {"start": start, "stop": stop})


def _output_of(call: Call, source: fx.Node, index: int) -> Op | None:
    """One output of an operator with several: a part of a split, or the first of a native norm."""
    name = name_of(source) if source.op in ("call_function", "call_method") else ""
    inner = Call(source, call.shape)
    if name == "native_layer_norm" and index == 0:
        op = _layer_norm(inner)
        return op and Op(op.kind, op.inputs, op.attrs, via=(source,))
    if name not in ("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split"):
        return None
    x, how, dim = (
        inner.get(0, "input"),
        source.args[1] if len(source.args) > 1 else None,
        inner.get(2, "dim", 0),
    )
    if how is None:
        how = next(
            (
                source.kwargs[k]
                for k in ("chunks", "split_size", "split_size_or_sections")
                if k in source.kwargs
            ),
            0,
        )
    width = call.width(x)
    if width is None or not inner.is_last(x, dim):
        return None
    sizes = _sizes(width, how, in_parts="chunk" in name or name == "tensor_split")
    if sizes is None or index >= len(sizes):
        return None
    start = sum(sizes[:index])
    return Op("part", (x,), {"start": start, "stop": start + sizes[index]}, via=(source,))


def _sizes(width: int, how: Any, *, in_parts: bool) -> list[int] | None:
    if isinstance(how, (list, tuple)):
        return list(how) if all(isinstance(each, int) for each in how) else None
    if not isinstance(how, int) or how < 1:
        return None
    step = -(-width // how) if in_parts else how
    return [min(step, width - start) for start in range(0, width, step)]


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
        ("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "identity", "item"), _passing
    ),
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshape
    ),
    "dropout": _dropout, "native_dropout": _dropout,
    # norms
    "mean": _mean, "var": _var, "rms_norm": _rms_norm, "layer_norm": _layer_norm,
    # products with weights
    "linear": _linear, "matmul": _matmul, "mm": _matmul, "addmm": _addmm,
    # pieces
    "t": _transpose, "T": _transpose, "mT": _transpose, "transpose": _transpose, "permute": _transpose,
    "getitem": _getitem, "slice": _slice, "narrow": lambda call: None,
    # experts
    "topk": _route, "grouped_mm": _route, "_grouped_mm": _route,
}  # fmt: skip
assert operator.getitem.__name__ == "getitem"
