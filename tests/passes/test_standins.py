"""Shapes behind operators that onnx does not know, against those that ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from fxfuse.onnxio import inferred_shapes
from fxfuse.passes.onnx.standins import stand_in
from fxfuse.sessions import session
from tests.passes.onnx_graphs import HIDDEN, Graph, example

MS = "com.microsoft"


def packed(g: Graph, x: str) -> str:
    """MatMulNBits of a weight [3, HIDDEN]"""
    weights = [g.weight(np.zeros((3, 1, 16)), dtype=np.uint8), g.weight(np.ones(3))]
    return str(g.node("MatMulNBits", x, *weights, domain=MS, K=HIDDEN, N=3, block_size=32, bits=4))


def heads(g: Graph, x: str) -> str:
    """[b, s, 8] as [b, 2, s, 4]"""
    apart = g.node("Reshape", x, g.ints(0, 0, 2, 4))
    return str(g.node("Transpose", apart, perm=[0, 2, 1, 3]))


WRITES: list[Callable[[Graph, str], str]] = [
    lambda g, x: g.node("SimplifiedLayerNormalization", x, g.weight(np.ones(HIDDEN))),
    lambda g, x: g.node("LayerNormalization", x, g.weight(np.ones(HIDDEN)), g.weight(np.ones(HIDDEN))),
    lambda g, x: g.node("QuickGelu", x, domain=MS),
    lambda g, x: g.node("FusedMatMul", x, g.weight(np.ones((HIDDEN, 3))), domain=MS, alpha=0.5),
    lambda g, x: g.node("FusedMatMul", x, g.weight(np.ones((3, HIDDEN))), domain=MS, transB=1),
    lambda g, x: g.node("FusedMatMul", heads(g, x), heads(g, x), domain=MS, transB=1),
    lambda g, x: g.node("FusedMatMul", heads(g, x), heads(g, x), domain=MS, transA=1),
    lambda g, x: g.node("MultiHeadAttention", x, x, x, domain=MS, num_heads=2),
    packed,
]


@pytest.mark.parametrize("opset", [14, 20])
@pytest.mark.parametrize("write", WRITES)
def test_shapes(write: Callable[[Graph, str], str], opset: int) -> None:
    g = Graph(opset=opset)
    y = write(g, g.node("Relu", "x"))
    model = g.model(g.node("Cast", y, to=onnx.TensorProto.FLOAT), shaped=False)
    with inferred_shapes(model):
        found = {value.name: value.type.tensor_type for value in model.graph.value_info}
        sizes = [dim.dim_value or {"b": 2, "s": 3}[dim.dim_param] for dim in found[y].shape.dim]
        assert found[y].elem_type == onnx.TensorProto.FLOAT
    (result,) = session(model.SerializeToString(), "cpu").run(None, {"x": example()})
    assert tuple(sizes) == result.shape


@pytest.mark.parametrize(
    "node",
    [
        onnx.helper.make_node("Add", ["x", "x"], ["y"]),
        onnx.helper.make_node("MultiHeadAttention", ["qkv"], ["y"], domain=MS),
        onnx.helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain=MS, transBatchA=1),
        onnx.helper.make_node("MatMulNBits", ["x", "w"], ["y"], domain=MS, K=4),
    ],
)
def test_operators_without_a_stand_in(node: onnx.NodeProto) -> None:
    assert stand_in(node) == [node]
