"""Which products of an ONNX graph can be quantised, and why others stay float."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from fxfuse.passes.onnx.names import scope_of
from fxfuse.quantisation.options import Quantise

__all__ = ["OVER_BUDGET", "Stored", "name_of", "objection"]

OVER_BUDGET = "its group would be over the budget"

Stored = Mapping[str, onnx.TensorProto]
"""The stored tensors that a node may read, by name."""

_NAMES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.DOUBLE: "float64",
}
_TAKES = {"int8": ("float32",), "int4": ("float32", "float16", "bfloat16")}


def objection(
    node: onnx.NodeProto, stored: Stored, wish: Quantise, leave: Collection[str], *, inside: bool = False
) -> str | None:
    """Why a product stays float, None where it is quantised; "" for what is no product of a float weight.

    `stored` are the tensors that it may read, `leave` the weights that must stay, `inside` says that it is
    in the body of another node. As the library does by default, only MatMul is looked at.
    """
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return ""
    weight = stored.get(node.input[1])
    if weight is None or weight.data_type not in _NAMES:
        return ""
    if (reason := wish.leaves_out(name_of(node), node.name, node.output[0], weight.name)) is not None:
        return reason
    if node.op_type == "Gemm":
        return "it is a Gemm, and ONNX Runtime's quantiser takes MatMul alone"
    if weight.name in leave:
        return OVER_BUDGET
    kind = _NAMES[weight.data_type]
    if kind not in _TAKES[wish.kind]:
        return f"its weight is {kind}, and {wish.kind} takes {' or '.join(_TAKES[wish.kind])}"
    if len(weight.dims) != 2:
        return f"its weight has {len(weight.dims)} axes, not two"
    if inside and wish.kind == "int8":
        return "it is inside of an If, Loop or Scan node, where ONNX Runtime quantises no product to int8"
    return None


def name_of(node: onnx.NodeProto) -> str:
    """What a product is called: its layer path where the file tells it, else the node's or output's name."""
    return scope_of(node, *node.input[1:2]) or str(node.name or node.output[0])
