"""A part of a model, cut out as a model of its own."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fxfuse.passes.onnx.extract import ModelIndex, extract, subgraph_reads
from fxfuse.sessions import session
from tests.passes.onnx_graphs import HIDDEN, Graph, example, find

FLOAT = TensorProto.FLOAT


def two_blocks() -> tuple[Graph, onnx.ModelProto]:
    g = Graph()
    return g, g.model(g.node("Tanh", g.block(g.block(g.node("Relu", "x")))))


def test_one_branch_of_one_block() -> None:
    """FFN(norm(x1)) as a function of x1"""
    g, model = two_blocks()
    block = find(model).chains[0].blocks[1]
    part = extract(ModelIndex(model), {str(block.x): FLOAT}, [str(block.branch)])
    assert [each.name for each in part.graph.input] == [block.x]
    assert {each.name for each in part.graph.initializer} < {each.name for each in model.graph.initializer}
    result = run_named(part, {str(block.x): example()})
    np.testing.assert_allclose(result, g.blocks[1].branch(example()), rtol=1e-5, atol=1e-5)


def run_named(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(session(model.SerializeToString(), "cpu").run(None, feed)[0])


def test_without_cuts_the_whole_of_what_is_needed() -> None:
    _, model = two_blocks()
    part = extract(ModelIndex(model), {}, [model.graph.output[0].name])
    assert [node.name for node in part.graph.node] == [node.name for node in model.graph.node]
    assert [each.name for each in part.graph.input] == ["x"]
    np.testing.assert_array_equal(run_named(part, {"x": example()}), run_named(model, {"x": example()}))


def test_nodes_keep_their_order_and_bytes() -> None:
    _, model = two_blocks()
    block = find(model).chains[0].blocks[0]
    part = extract(ModelIndex(model), {str(block.x): FLOAT}, [str(block.out)])
    names = [node.name for node in part.graph.node]
    whole = {node.name: node for node in model.graph.node}
    assert names == [name for name in whole if name in names]
    assert all(node == whole[node.name] for node in part.graph.node)


def test_cuts_that_are_not_read_are_no_inputs() -> None:
    _, model = two_blocks()
    block = find(model).chains[0].blocks[0]
    part = extract(ModelIndex(model), {str(block.x): FLOAT, "elsewhere": FLOAT}, [str(block.branch)])
    assert [each.name for each in part.graph.input] == [block.x]


def test_an_output_that_is_a_cut_is_passed_through() -> None:
    _, model = two_blocks()
    name = model.graph.node[0].output[0]
    part = extract(ModelIndex(model), {name: FLOAT}, [name])
    assert not part.graph.node
    assert [each.name for each in part.graph.input] == [name]


def test_versions_functions_and_metadata() -> None:
    g = Graph()
    model = g.model(g.node("Twice", "x", domain="local"), ir_version=9)
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(
        helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    )
    model.opset_import.append(helper.make_opsetid("local", 1))
    part = extract(ModelIndex(model), {}, [model.graph.output[0].name])
    assert (part.ir_version, part.opset_import, part.functions) == (9, model.opset_import, model.functions)
    np.testing.assert_array_equal(run_named(part, {"x": example()}), 2 * example())


@pytest.mark.parametrize("nested", [False, True])
def test_what_subgraphs_take_from_outside_comes_along(nested: bool) -> None:
    g = Graph()
    y = g.node("Relu", "x")
    branches = {}
    for name in ("then_branch", "else_branch"):
        out = helper.make_tensor_value_info(f"{name}_out", FLOAT, ["b", "s", HIDDEN])
        inner = [helper.make_node("Mul", [y, g.weight(np.full(HIDDEN, 3.0), f"{name}_w")], [out.name])]
        branches[name] = helper.make_graph(inner, name, [], [out])
    if nested:
        wrapped = {}
        for name in branches:
            out = helper.make_tensor_value_info(f"{name}_outer", FLOAT, ["b", "s", HIDDEN])
            node = helper.make_node("If", ["flag"], [out.name], **branches)
            wrapped[name] = helper.make_graph([node], f"{name}_outer", [], [out])
        branches = wrapped
    z = g.node("If", g.weight(True, "flag", dtype=bool), **branches)
    model = g.model(g.node("Tanh", z))
    part = extract(ModelIndex(model), {}, [z])
    assert {"flag", "then_branch_w", "else_branch_w"} == {each.name for each in part.graph.initializer}
    np.testing.assert_array_equal(run_named(part, {"x": example()}), 3 * np.maximum(example(), 0))


def test_reads_of_a_plain_node_are_its_inputs() -> None:
    assert list(subgraph_reads(helper.make_node("Clip", ["x", "", "max"], ["y"]))) == ["x", "", "max"]
