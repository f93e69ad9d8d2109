"""ONNX's quantised products in canonical form: a `linear` whose weight is a constant behind "dequantize".

MatMulNBits(x, B)                                           weight-only
MatMul(x, DequantizeLinear(W))                              weight-only
Mul(Cast(MatMulInteger(q, W)), scale of q * scale of W)     q, scale = DynamicQuantizeLinear(x)
MatMulIntegerToFloat(q, W), DynamicQuantizeMatMul(x, W)     the same, as ONNX Runtime fuses it
QLinearMatMul(q, W), Q and DQ between others                "rounded", by a scale of the file
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_graphsurgeon as gs

from fxfuse.passes.view import Op

__all__ = ["HANDLERS", "integer_product"]

Call = Any  # a NodeCall; fxfuse.passes.onnx.ops imports this table


def _dequantize(call: Call, _: int) -> Op | None:
    source = call.input(0)
    if not call.facts.is_constant(source):
        return _rounded(call)
    axis, block = call.attribute("axis", 1), call.attribute("block_size", 0)
    return _weight(call, (0, 1, 2), "DequantizeLinear", axis=axis, block=block)


def _quantize(call: Call, _: int) -> Op | None:
    source = call.input(0)
    if not call.facts.is_constant(source):
        return _rounded(call)
    zero = call.input(2)
    kind = call.facts.dtype(zero) if zero else "uint8"
    inputs = tuple(each for each in map(call.input, range(3)) if each)
    axis, block = call.attribute("axis", 1), call.attribute("block_size", 0)
    return Op("quantize", inputs, {"kind": kind, "axis": axis, "block": block})


def _rounded(call: Call) -> Op:
    """A value that is rounded to a grid which was chosen when the model was quantised."""
    return Op("rounded", (call.input(0),), {"scale": call.input(1)})


def _weight(call: Call, places: tuple[int, ...], operator: str, axis: int = 1, block: int = 0) -> Op:
    """The weight at the inputs `places` (integers, scale, zero point) of a node."""
    names = [call.input(place) for place in places]
    attrs = {"operator": operator, "kind": call.facts.dtype(names[0]), "axis": axis, "block": block}
    return Op("dequantize", tuple(each for each in names if each), attrs)


def _nbits(call: Call, _: int) -> Op:
    rows, columns = call.attribute("N"), call.attribute("K")
    bits, zero = call.attribute("bits", 4), call.input(3)
    packed_zero = zero is None or call.facts.dtype(zero) == "uint8"
    inputs = tuple(each for each in (call.input(1), call.input(2), zero) if each)
    attrs = {
        "operator": "MatMulNBits", "kind": f"uint{bits}", "bits": bits, "block": call.attribute("block_size"),
        "level": call.attribute("accuracy_level", 0), "shape": (rows, columns), "packed_zero": packed_zero,
        "g_idx": call.input(4) is not None,
    }  # fmt: skip
    weight = Op("dequantize_packed", inputs, attrs)
    return Op("linear", (call.input(0), weight, call.input(5)), {"transposed": False})


def integer_product(call: Call) -> Op | None:
    """The product behind a Mul that gives the integers of MatMulInteger their two scales; else None."""
    passed: list[str] = []
    factors = _factors(call.node, passed)
    products = [node for node in factors if isinstance(node, gs.Node)]
    if len(products) != 1:
        return None
    (product,) = products
    names = [each.name for each in product.inputs]
    quantizer = _producer(product.inputs[0])
    scales = [each for each in factors if not isinstance(each, gs.Node)]
    own = [each for each in scales if call.facts.is_constant(each.name)]
    given = [each for each in scales if each not in own]
    if quantizer is None or len(own) != 1 or len(given) != 1:
        return None
    if quantizer.op == "DynamicQuantizeLinear" and given[0].name != quantizer.outputs[1].name:
        return None
    attrs = {"operator": "MatMulInteger", "kind": call.facts.dtype(names[1]), "axis": 1, "block": 0}
    zero = names[3] if len(names) > 3 and names[3] else None
    weight = Op("dequantize", (names[1], own[0].name, *([zero] if zero else [])), attrs)
    via = (*passed, *_ends(quantizer))
    return Op("linear", (_read(product.inputs[0]), weight, None), {"transposed": True}, via=via)


def _factors(node: gs.Node, passed: list[str], depth: int = 3) -> list[Any]:
    """What a tree of Mul multiplies: tensors, and the node where it is the integers of a MatMulInteger."""
    found: list[Any] = []
    for tensor in node.inputs:
        inner = _producer(tensor)
        cast = _producer(inner.inputs[0]) if inner is not None and inner.op == "Cast" else None
        if inner is not None and cast is not None and cast.op == "MatMulInteger":
            passed += [tensor.name, inner.inputs[0].name]
            found.append(cast)
        elif inner is not None and inner.op == "Mul" and depth:
            passed.append(tensor.name)
            found += _factors(inner, passed, depth - 1)
        else:
            found.append(tensor)
    return found


def _producer(tensor: gs.Tensor) -> gs.Node | None:
    return tensor.inputs[0] if tensor.inputs else None


def _read(quantised: gs.Tensor) -> str:
    """What a product of integers reads: the value before it was quantised in the graph."""
    node = _producer(quantised)
    dynamic = node is not None and node.op == "DynamicQuantizeLinear"
    return str(node.inputs[0].name if node is not None and dynamic else quantised.name)


def _ends(node: gs.Node | None) -> list[str]:
    dynamic = node is not None and node.op == "DynamicQuantizeLinear"
    return [each.name for each in node.outputs] if node is not None and dynamic else []


def _integer_to_float(call: Call, _: int) -> Op:
    tensor = call.node.inputs[0]
    weight = _weight(call, (1, 3, 5), "MatMulIntegerToFloat")
    inputs = (_read(tensor), weight, call.input(6))
    return Op("linear", inputs, {"transposed": True}, via=tuple(_ends(_producer(tensor))))


def _dynamic_matmul(call: Call, _: int) -> Op:
    weight = _weight(call, (1, 2, 3), "DynamicQuantizeMatMul")
    return Op("linear", (call.input(0), weight, call.input(4)), {"transposed": True})


def _qlinear_matmul(call: Call, _: int) -> Op:
    weight = _weight(call, (3, 4, 5), "QLinearMatMul")
    return Op("linear", (call.input(0), weight, None), {"transposed": True, "scale": call.input(1)})


def _qgemm(call: Call, _: int) -> Op | None:
    if call.attribute("transA", 0):
        return None
    weight = _weight(call, (3, 4, 5), "QGemm", axis=0 if call.attribute("transB", 0) else 1)
    attrs = {"transposed": not call.attribute("transB", 0), "scale": call.input(1)}
    return Op("linear", (call.input(0), weight, None), attrs)


def _qlinear(kind: str, places: tuple[int, ...]) -> Callable[[Call, int], Op]:
    """An elementwise operator of integers, by the numbers that they stand for."""
    return lambda call, _: Op(kind, tuple(call.input(place) for place in places))


HANDLERS: dict[str, Callable[[Any, int], Op | None]] = {
    "MatMulNBits": _nbits, "DequantizeLinear": _dequantize, "QuantizeLinear": _quantize,
    "MatMulIntegerToFloat": _integer_to_float, "DynamicQuantizeMatMul": _dynamic_matmul,
    "QLinearMatMul": _qlinear_matmul, "QGemm": _qgemm,
    "QLinearAdd": _qlinear("add", (0, 3)), "QLinearMul": _qlinear("mul", (0, 3)),
    "QLinearSigmoid": _qlinear("sigmoid", (0,)),
}  # fmt: skip
