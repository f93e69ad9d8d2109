"""Operators that onnx's shape inference does not know, as ones that it knows and that have the same shape.

    SimplifiedLayerNormalization(x, w) -> y     Identity(x) -> y
    FusedMatMul(x, w, transB=1) -> y            Einsum(x, w) -> y

They stand in a model that only shape inference sees. Without them inference stops at the first norm.
"""

from __future__ import annotations

from collections.abc import Callable, Container

import onnx
from onnx import helper

__all__ = ["stand_in"]

StandIn = list[onnx.NodeProto]


def stand_in(node: onnx.NodeProto, stored: Container[str] = ()) -> StandIn:
    """The nodes to infer shapes with; `node` itself where it has none."""
    write = _STAND_INS.get((node.domain, node.op_type))
    found = write(node, stored) if write is not None else None
    return found if found is not None else [node]


def _same(node: onnx.NodeProto, _: Container[str]) -> StandIn:
    """The first output is like the first input."""
    return [helper.make_node("Identity", node.input[:1], node.output[:1])]


def _attention(node: onnx.NodeProto, _: Container[str]) -> StandIn | None:
    """The output is like the query, unless query, key and value lie in one tensor."""
    apart = len(node.input) > 2 and bool(node.input[1] and node.input[2])
    return _same(node, ()) if apart else None


def _matmul(node: onnx.NodeProto, stored: Container[str]) -> StandIn | None:
    """Two matrices, transposed or not; the second may be a weight, which has no batch axes."""
    given = {each.name: each.i for each in node.attribute}
    if given.get("transBatchA") or given.get("transBatchB"):
        return None
    inputs, output = node.input[:2], node.output[:1]
    if not given.get("transA") and not given.get("transB"):
        return [helper.make_node("MatMul", inputs, output)]
    first = "...ji" if given.get("transA") else "...ij"
    second = ("" if inputs[1] in stored else "...") + ("kj" if given.get("transB") else "jk")
    return [helper.make_node("Einsum", inputs, output, equation=f"{first},{second}->...ik")]


def _quantised(node: onnx.NodeProto, _: Container[str]) -> StandIn | None:
    """A weight [K, N], sizes that are attributes, of the type of its scales."""
    given = {each.name: each.i for each in node.attribute}
    if "K" not in given or "N" not in given or len(node.input) < 3:
        return None
    scale, sizes, weight = (f"{node.output[0]}:{part}" for part in ("scale", "sizes", "weight"))
    return [
        helper.make_node("ReduceMax", [node.input[2]], [scale], keepdims=0),
        helper.make_node("Constant", [], [sizes], value_ints=[given["K"], given["N"]]),
        helper.make_node("Expand", [scale, sizes], [weight]),
        helper.make_node("MatMul", [node.input[0], weight], node.output[:1]),
    ]


_STAND_INS: dict[tuple[str, str], Callable[[onnx.NodeProto, Container[str]], StandIn | None]] = {
    **{("", name): _same for name in ("SimplifiedLayerNormalization", "LayerNormalization")},
    **{
        ("com.microsoft", name): _same
        for name in ("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "RotaryEmbedding", "ScaledSiLU")
    },
    **{("com.microsoft", name): _attention for name in ("MultiHeadAttention", "GroupQueryAttention")},
    **{("com.microsoft", name): _matmul for name in ("FusedMatMul", "TransposeMatMul")},
    **{("com.microsoft", name): _quantised for name in ("MatMulNBits", "MatMulBnb4")},
}
