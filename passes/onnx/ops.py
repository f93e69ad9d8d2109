"""ONNX operators in canonical form, by op_type; those of com.microsoft stand beside the standard ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fxfuse.passes.onnx import activations, quantised
from fxfuse.passes.view import Op

__all__ = ["HANDLERS", "Facts", "NodeCall", "torch_dtype_name"]


class Facts(Protocol):
    """What a handler may ask about the values around a node."""

    def shape(self, value: Any) -> tuple[int | None, ...] | None:
        """The shape as far as it is known."""

    def width(self, value: str) -> int | None:
        """The size of the last axis, also where shape inference did not reach."""

    def integers(self, value: str, seen: list[str]) -> list[int] | None:
        """A small integer tensor, computed from constants and known sizes; `seen` collects what it took."""

    def last_integer(self, value: str) -> int | None:
        """The last element of a small integer tensor, where no more than that may be known."""

    def number(self, value: str) -> float | None:
        """A constant of one element."""

    def is_constant(self, value: Any) -> bool:
        """Whether `value` depends on stored weights and literals alone."""

    def dtype(self, value: Any) -> str | None:
        """The element type, spelled as in torch; None when unknown."""


class NodeCall:
    """One node, its inputs by name and its attributes with defaults."""

    def __init__(self, node: gs.Node, facts: Facts) -> None:
        self.node = node
        self.facts = facts
        self.inputs: list[str | None] = [each.name or None for each in node.inputs]

    def input(self, index: int) -> str | None:
        """The name of an input; None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node, or `default`."""
        return self.node.attrs.get(name, default)

    def is_last(self, value: str | None, axis: int) -> bool:
        """Whether `axis` names the last axis of `value`."""
        shape = self.facts.shape(value) if value else None
        return axis == -1 or (shape is not None and axis == len(shape) - 1)


def torch_dtype_name(elem_type: int) -> str | None:
    """An ONNX element type, spelled as in torch."""
    names = {"FLOAT": "float32", "DOUBLE": "float64", "BOOL": "bool"}
    if elem_type == onnx.TensorProto.UNDEFINED:
        return None
    name: str = onnx.TensorProto.DataType.Name(elem_type)
    return names.get(name, name.lower())


_FLOATS = ("float16", "bfloat16", "float32", "float64")


def _elementwise(kind: str, arity: int = 1) -> Callable[[NodeCall, int], Op | None]:
    def handle(call: NodeCall, _: int) -> Op | None:
        return Op(kind, tuple(call.inputs)) if len(call.inputs) == arity and all(call.inputs) else None

    return handle


def _mul(call: NodeCall, index: int) -> Op | None:
    return quantised.integer_product(call) or _elementwise("mul", 2)(call, index)


def _cast(call: NodeCall, _: int) -> Op | None:
    dtype = torch_dtype_name(_element_type(call.attribute("to")))
    return Op("cast", (call.input(0),), {"dtype": dtype}) if dtype in _FLOATS else None


def _element_type(to: Any) -> int:
    """onnx-graphsurgeon imports the attribute as a number or as a NumPy type."""
    return (
        int(to)
        if isinstance(to, (int, np.integer))
        else int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to)))
    )


def _dropout(call: NodeCall, index: int) -> Op | None:
    if index != 0:
        return None  # the mask
    training = call.input(2)
    active = training is not None and call.facts.number(training) != 0.0
    ratio = call.facts.number(call.input(1) or "")
    return Op("dropout", (call.input(0),), {"active": active, "p": 0.5 if ratio is None else ratio})


def _mean(call: NodeCall, _: int) -> Op:
    axes = call.attribute("axes")
    if axes is None and call.input(1) and call.facts.shape(call.input(1)) != ():
        axes = call.facts.integers(call.input(1) or "", [])
    kept = call.attribute("keepdims", 1) == 1
    if kept and axes is not None and len(axes) == 1 and call.is_last(call.input(0), axes[0]):
        return Op("mean", (call.input(0),))
    return Op("ReduceMean", (call.input(0),), {"axes": axes, "kept": kept})


def _total(call: NodeCall, index: int) -> Op | None:
    """A sum as mean * width, a length as the root of one; those over other axes keep their names."""
    mean, width = _mean(call, index), call.facts.width(call.input(0) or "")
    if mean.kind != "mean" or width is None:
        return Op(call.node.op, mean.inputs, mean.attrs)
    if call.node.op != "ReduceSum":
        mean = Op("mean", (Op("square", mean.inputs),))
    total = Op("mul", (mean, float(width)))
    return Op("sqrt", (total,)) if call.node.op == "ReduceL2" else total


def _norm(kind: str, default_eps: float) -> Callable[[NodeCall, int], Op | None]:
    def handle(call: NodeCall, index: int) -> Op | None:
        if index != 0:
            return None
        axis = call.attribute("axis", -1)
        if not call.is_last(call.input(0), axis):
            return Op(call.node.op, (call.input(0),), {"axes": f"{axis} and those after it"})
        inputs = tuple(call.input(i) for i in range(3 if kind == "layer_norm" else 2))
        return Op(kind, inputs, {"eps": call.attribute("epsilon", default_eps)})

    return handle


def _matmul(call: NodeCall, _: int) -> Op | None:
    shape = call.facts.shape(call.input(1))
    plain = shape is not None and len(shape) == 2
    return Op("linear", (call.input(0), call.input(1), None), {"transposed": True}) if plain else None


def _fused_matmul(call: NodeCall, _: int) -> Op | None:
    shape = call.facts.shape(call.input(1))
    turned = [call.attribute(name, 0) for name in ("transA", "transBatchA", "transBatchB")]
    if shape is None or len(shape) != 2 or any(turned):
        return None
    attrs = {"transposed": not call.attribute("transB", 0), "alpha": call.attribute("alpha", 1.0)}
    return Op("linear", (call.input(0), call.input(1), None), attrs)


def _gemm(call: NodeCall, _: int) -> Op | None:
    if call.attribute("transA", 0):
        return None
    bias: Any = call.input(2)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    if bias is not None and beta != 1.0:
        bias = Op("mul", (bias, beta))
    attrs = {"transposed": not call.attribute("transB", 0), "alpha": alpha, "operator": "Gemm"}
    return Op("linear", (call.input(0), call.input(1), bias), attrs)


def _transpose(call: NodeCall, _: int) -> Op | None:
    shape = call.facts.shape(call.input(0))
    plain = shape is not None and len(shape) == 2 and list(call.attribute("perm", [1, 0])) == [1, 0]
    return Op("transpose", (call.input(0),)) if plain else None


def _reshape(call: NodeCall, _: int) -> Op | None:
    before = call.facts.width(call.input(0) or "")
    after = _last_size(call)
    return Op("pass", (call.input(0),)) if before is not None and before == after else None


def _last_size(call: NodeCall) -> int | None:
    shape = call.facts.shape(call.node.outputs[0].name)
    if shape and shape[-1] is not None:
        return shape[-1]
    target = call.facts.last_integer(call.input(1) or "") if call.node.op == "Reshape" else None
    return target if target is not None and target > 0 else None


def _split(call: NodeCall, index: int) -> Op | None:
    x = call.input(0) or ""
    width = call.facts.width(x)
    if width is None or not call.is_last(x, call.attribute("axis", 0)):
        return None
    sizes = call.attribute("split") or (
        call.facts.integers(call.input(1) or "", []) if call.input(1) else None
    )
    if sizes is None:
        count = len(call.node.outputs)
        step = -(-width // count)
        sizes = [min(step, width - i * step) for i in range(count)]
    start = sum(sizes[:index])
    others = tuple(each.name for each in call.node.outputs)
    return Op("part", (x,), {"start": start, "stop": start + sizes[index]}, via=others)


def _slice(call: NodeCall, _: int) -> Op | None:
    x, seen = call.input(0) or "", []  # type: tuple[str, list[str]]
    width = call.facts.width(x)
    if "starts" in call.node.attrs:
        bounds: list[Any] = [call.attribute(name) for name in ("starts", "ends", "axes")] + [[1]]
    else:
        bounds = [call.facts.integers(name, seen) if name else None for name in map(call.input, range(1, 5))]
        bounds[3] = bounds[3] or [1]
    if width is None or any(each is None or len(each) != 1 for each in bounds):
        return None
    (start,), (stop,), (axis,), (step,) = bounds
    if step != 1 or not call.is_last(x, axis):
        return None
    start, stop, _ = slice(start, stop).indices(width)
    return Op("part", (x,), {"start": start, "stop": stop}, via=tuple(seen))


def _gelu(call: NodeCall, _: int) -> Op:
    approximate = call.attribute("approximate", "none")
    return Op("gelu", (call.input(0),), {"approximate": approximate})


def _fast_gelu(call: NodeCall, _: int) -> Op:
    return Op("gelu", (call.input(0),), {"approximate": "tanh"})


def _sum(call: NodeCall, _: int) -> Op | None:
    value: Any = call.input(0)
    for each in call.inputs[1:]:
        value = Op("add", (value, each))
    return value if isinstance(value, Op) else Op("pass", (value,))


def _scaled_silu(call: NodeCall, _: int) -> Op:
    scale: Any = call.input(1) or call.attribute("alpha", 1.0)
    return Op("silu", (Op("mul", (call.input(0), scale)),))


def _swish(name: str) -> Callable[[NodeCall, int], Op | None]:
    default = {"QuickGelu": 1.702, "Swish": 1.0}[name]
    return lambda call, _: Op("quick_gelu", (call.input(0),), {"alpha": call.attribute("alpha", default)})


def _clip(call: NodeCall, _: int) -> Op | None:
    value: Any = call.input(0)
    for kind, index in (("maximum", 1), ("minimum", 2)):
        if call.input(index):
            value = Op(kind, (value, call.input(index)))
    return value if isinstance(value, Op) else None


def _named(kind: str) -> Callable[[NodeCall, int], Op | None]:
    return lambda call, _: Op(kind, (call.input(0),))


HANDLERS: dict[str, Callable[[NodeCall, int], Op | None]] = {
    # of two values
    "Add": _elementwise("add", 2), "Sum": _sum, "Sub": _elementwise("sub", 2), "Mul": _mul,
    "Div": _elementwise("div", 2), "Pow": _elementwise("pow", 2),
    "Max": _elementwise("maximum", 2), "Min": _elementwise("minimum", 2), "Clip": _clip,
    "Greater": _elementwise("greater", 2), "Less": _elementwise("less", 2), "Where": _elementwise("where", 3),
    "GreaterOrEqual": _elementwise("at_least", 2), "LessOrEqual": _elementwise("at_most", 2),
    # of one value
    **{name: _elementwise(name.lower()) for name in (
        "Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Sigmoid", "Tanh", "Erf", "Relu", "Softplus",
        "Mish", "HardSwish", "Sign", "Sin", "Cos",
    )},
    **activations.HANDLERS,
    "Gelu": _gelu, "FastGelu": _fast_gelu, "ScaledSiLU": _scaled_silu,
    "QuickGelu": _swish("QuickGelu"), "Swish": _swish("Swish"),
    # what changes no number
    "Cast": _cast, "Identity": _named("pass"), "Dropout": _dropout,
    "Reshape": _reshape, "Squeeze": _reshape, "Unsqueeze": _reshape, "Flatten": _reshape,
    "Expand": _named("expand"),
    # norms
    "ReduceMean": _mean, **dict.fromkeys(("ReduceSum", "ReduceL2", "ReduceSumSquare"), _total),
    "RMSNormalization": _norm("rms_norm", 1e-5),
    "SimplifiedLayerNormalization": _norm("rms_norm", 1e-5), "LayerNormalization": _norm("layer_norm", 1e-5),
    # products with weights
    "MatMul": _matmul, "Gemm": _gemm, "FusedMatMul": _fused_matmul, "TransposeMatMul": _fused_matmul,
    **quantised.HANDLERS,
    # pieces
    "Transpose": _transpose, "Split": _split, "Slice": _slice,
    # others
    "Shape": _named("shape"), "Size": _named("shape"), "TopK": _named("route"),
}  # fmt: skip
