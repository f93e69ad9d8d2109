"""A bfloat16 model in float32: the same numbers, wherever a bfloat16 may hide."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxfuse.passes.onnx.upcast import has_bfloat16, upcast
from tests.passes.onnx_graphs import HIDDEN, Graph, example, run

BF16, F32 = TensorProto.BFLOAT16, TensorProto.FLOAT


def bfloat16_model() -> tuple[Graph, onnx.ModelProto]:
    g = Graph(ml_dtypes.bfloat16)
    y = g.node("Cast", g.node("Cast", g.block(g.block("x")), to=F32), to=BF16)
    one = g.node("Constant", value=numpy_helper.from_array(np.ones(HIDDEN, ml_dtypes.bfloat16)))
    inner = helper.make_tensor_value_info("inner", BF16, ["b", "s", HIDDEN])
    body = helper.make_graph(
        [helper.make_node("Mul", [y, "two"], ["inner"])],
        "branch",
        [],
        [inner],
        [numpy_helper.from_array(np.asarray(2.0, ml_dtypes.bfloat16), "two")],
    )
    z = g.node("If", g.weight(True, dtype=bool), then_branch=body, else_branch=body)
    model = g.model(g.node("Add", z, one))
    model.graph.value_info.append(helper.make_tensor_value_info(y, BF16, ["b", "s", HIDDEN]))
    return g, model


def test_the_numbers_are_those_of_the_weights() -> None:
    g, model = bfloat16_model()
    x = example(ml_dtypes.bfloat16)
    (result,) = run(upcast(model), x.astype(np.float32))
    first = g.parallel(x, [(0,), (1,)])
    np.testing.assert_allclose(result, 2.0 * first + 1.0, rtol=1e-4, atol=1e-4)


def test_nothing_is_bfloat16_any_more() -> None:
    _, model = bfloat16_model()
    before = model.SerializeToString(deterministic=True)
    copy = upcast(model)
    assert has_bfloat16(model)
    assert not has_bfloat16(copy)
    text = str(copy)
    assert f"elem_type: {int(BF16)}\n" not in text
    assert f"data_type: {int(BF16)}\n" not in text
    assert model.SerializeToString(deterministic=True) == before


def test_weights_keep_their_values_and_names() -> None:
    _, model = bfloat16_model()
    for old, new in zip(model.graph.initializer, upcast(model).graph.initializer, strict=True):
        assert old.name == new.name
        one, other = numpy_helper.to_array(old), numpy_helper.to_array(new)
        np.testing.assert_array_equal(one.astype(np.float64), other.astype(np.float64))
        assert other.dtype != ml_dtypes.bfloat16


def test_other_types_stay() -> None:
    g = Graph(np.float16)
    model = g.model(g.block(g.node("Cast", g.node("Cast", "x", to=F32), to=TensorProto.FLOAT16)))
    assert not has_bfloat16(model)
    assert upcast(model) == model


@pytest.mark.parametrize("where", ["input", "output", "initializer"])
def test_where_bfloat16_is_seen(where: str) -> None:
    g = Graph()
    model = g.model(g.node("Relu", "x"))
    if where == "initializer":
        model.graph.initializer.append(numpy_helper.from_array(np.ones(2, ml_dtypes.bfloat16), "w"))
    else:
        getattr(model.graph, where)[0].type.tensor_type.elem_type = BF16
    assert has_bfloat16(model)


def test_functions_are_upcast_too() -> None:
    g = Graph(ml_dtypes.bfloat16)
    model = g.model(g.node("Narrow", "x", domain="local"))
    body = [helper.make_node("Cast", ["a"], ["b"], to=BF16)]
    model.functions.append(
        helper.make_function("local", "Narrow", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    )
    assert upcast(model).functions[0].node[0].attribute[0].i == F32
