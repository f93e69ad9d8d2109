"""Everything a rewrite did not touch is there byte for byte."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fxfuse.passes.onnx.splice import splice
from tests.passes.onnx_graphs import HIDDEN, Graph, example, find, fuse, lengths, run, view_of


def decorated() -> tuple[Graph, onnx.ModelProto]:
    """Two chains with other nodes around them, and something in every field that an exporter may fill."""
    g = Graph()
    start = g.node("Relu", "x")
    y = g.block(g.block(start))
    middle = g.node("Tanh", y)
    end = g.block(g.block(middle))
    g.node("Neg", y)
    g.weight(np.ones(3), "nobody_reads_this")
    model = g.model(end, middle)
    model.producer_name, model.producer_version, model.domain = "tester", "1.2", "org.test"
    model.model_version, model.doc_string = 7, "a model"
    model.metadata_props.add(key="author", value="someone")
    graph = model.graph
    graph.doc_string = "a graph"
    graph.metadata_props.add(key="origin", value="hand")
    for node in graph.node:
        node.doc_string = f"doc of {node.name}"
        node.metadata_props.add(key="namespace", value=f": Tiny/{node.name}: Layer/{node.op_type}")
    graph.value_info.extend(onnx.shape_inference.infer_shapes(model).graph.value_info)
    annotation = graph.quantization_annotation.add(tensor_name=start)
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="nobody_reads_this")
    graph.input[0].doc_string = "the input"
    return g, model


@pytest.fixture(scope="module")
def spliced() -> tuple[Graph, onnx.ModelProto, onnx.ModelProto]:
    g, model = decorated()
    return g, model, fuse(model)


def test_the_numbers(spliced) -> None:
    g, _, fused = spliced
    x = example()
    start = np.maximum(x, 0)
    middle = np.tanh(g.parallel(start, [(0, 1)]))
    outputs = run(fused, x)
    np.testing.assert_allclose(outputs[1], middle, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs[0], g.parallel(middle, [(2, 3)]), rtol=1e-5, atol=1e-5)


def test_every_field_of_the_model_and_graph(spliced) -> None:
    _, model, fused = spliced
    for field, value in model.ListFields():
        if field.name != "graph":
            assert getattr(fused, field.name) == value, field.name
    for field, value in model.graph.ListFields():
        if field.name not in ("node", "initializer", "value_info"):
            assert getattr(fused.graph, field.name) == value, field.name


def test_untouched_nodes_are_byte_for_byte_and_in_order(spliced) -> None:
    _, model, fused = spliced
    before = {node.name: node for node in model.graph.node}
    old = [node for node in fused.graph.node if node.name in before]
    assert [node.name for node in old] == [name for name in before if name in {node.name for node in old}]
    changed = [node for node in old if node.SerializeToString() != before[node.name].SerializeToString()]
    assert [node.op_type for node in changed] == ["Add", "Add"]
    for node in changed:
        original = before[node.name]
        assert (node.output, node.doc_string) == (original.output, original.doc_string)
        assert node.metadata_props == original.metadata_props


def test_unread_nodes_of_others_stay(spliced) -> None:
    _, model, fused = spliced
    (unread,) = (node for node in model.graph.node if node.op_type == "Neg")
    assert unread.SerializeToString() in [node.SerializeToString() for node in fused.graph.node]
    assert "nobody_reads_this" in {tensor.name for tensor in fused.graph.initializer}


def test_weights_that_are_folded_go_and_others_stay(spliced) -> None:
    _, model, fused = spliced
    before = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
    after = {tensor.name: tensor.SerializeToString() for tensor in fused.graph.initializer}
    assert not [name for name in after if name.startswith("layers.")]
    kept = [name for name in after if name in before]
    assert kept
    assert all(after[name] == before[name] for name in kept)
    read = {name for node in fused.graph.node for name in node.input} | {"nobody_reads_this"}
    assert set(after) <= read


def test_value_infos_of_what_is_left_stay(spliced) -> None:
    _, model, fused = spliced
    names = {output for node in fused.graph.node for output in node.output}
    before = {each.name: each.SerializeToString() for each in model.graph.value_info}
    after = {each.name: each.SerializeToString() for each in fused.graph.value_info}
    assert after == {name: value for name, value in before.items() if name in names}


def test_new_nodes_say_which_blocks_they_come_from(spliced) -> None:
    _, model, fused = spliced
    names = [block.name for chain in find(model).chains for block in chain.blocks]
    marks = [
        {entry.key: entry.value for entry in node.metadata_props}
        for node in fused.graph.node
        if node.name.startswith("fxfuse.")
    ]
    assert {mark["fxfuse.blocks"] for mark in marks} == {f"{names[0]}, {names[1]}", f"{names[2]}, {names[3]}"}


def test_the_original_is_not_changed() -> None:
    _, model = decorated()
    before = model.SerializeToString(deterministic=True)
    fuse(model)
    assert model.SerializeToString(deterministic=True) == before


def test_without_groups_nothing_changes() -> None:
    _, model = decorated()
    same = splice(model, view_of(model), [], [])
    assert same.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_subgraph_keeps_what_it_reads_alive() -> None:
    """x0 and xn, the chain's ends, may be read from inside an If; so may a weight"""
    g = Graph()
    y = g.block(g.block("x"))
    branches = {}
    for name, read in (("then_branch", y), ("else_branch", "x")):
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["b", "s", HIDDEN])
        nodes = [
            helper.make_node("Mul", [read, g.weight(np.full(HIDDEN, 2.0), f"{name}_factor")], [out.name])
        ]
        branches[name] = helper.make_graph(nodes, name, [], [out])
    model = g.model(g.node("If", g.weight(True, dtype=bool), **branches))
    assert lengths(find(model)) == [2]
    fused = fuse(model)
    assert {"then_branch_factor", "else_branch_factor"} <= {each.name for each in fused.graph.initializer}
    np.testing.assert_allclose(run(fused, example())[0], 2.0 * g.parallel(example()), rtol=1e-5, atol=1e-5)


def test_local_functions_stay() -> None:
    g = Graph()
    model = g.model(g.node("Twice", g.block(g.block("x")), domain="local"))
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(
        helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    )
    model.opset_import.append(helper.make_opsetid("local", 1))
    fused = fuse(model)
    assert list(fused.functions) == list(model.functions)
    np.testing.assert_allclose(run(fused, example())[0], 2.0 * g.parallel(example()), rtol=1e-5, atol=1e-5)


def test_initializers_that_are_inputs_too_leave_the_inputs_with_them() -> None:
    """Old models list every weight as an input; one without its initializer would be asked of the caller"""
    g = Graph()
    model = g.model(g.block(g.block("x")))
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(value)
    fused = fuse(model)
    stored = {tensor.name for tensor in fused.graph.initializer}
    assert [value.name for value in fused.graph.input if value.name not in stored] == ["x"]
    np.testing.assert_allclose(run(fused, example())[0], g.parallel(example()), rtol=1e-5, atol=1e-5)


def test_weights_in_constant_nodes_go_with_their_nodes() -> None:
    g = Graph()
    g.block(g.block("x"))
    model = g.model(g.nodes[-1].output[0])
    stored = [tensor for tensor in model.graph.initializer if tensor.name.startswith("layers.0.gate")]
    for tensor in stored:
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        model.graph.node.insert(0, node)
        model.graph.initializer.remove(tensor)
    fused = fuse(model)
    assert not [node for node in fused.graph.node if node.op_type == "Constant"]
    np.testing.assert_allclose(run(fused, example())[0], g.parallel(example()), rtol=1e-5, atol=1e-5)


def test_external_data_stay_references() -> None:
    """A tensor that is not folded is carried as it is, wherever its bytes lie"""
    g = Graph()
    model = g.model(g.node("Mul", g.block(g.block("x")), g.weight(np.ones(HIDDEN), "far")))
    (far,) = (tensor for tensor in model.graph.initializer if tensor.name == "far")
    far.ClearField("raw_data")
    far.data_location = TensorProto.EXTERNAL
    far.external_data.add(key="location", value="weights.bin")
    fused = fuse(model)
    assert far in list(fused.graph.initializer)
