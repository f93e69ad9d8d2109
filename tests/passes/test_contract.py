"""What a rewrite left alone comes back as it was, and a Skip node whose operands changed is one again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fxfuse.passes.onnx.contract import contract
from fxfuse.passes.onnx.expand import expand
from tests.passes.onnx_graphs import HIDDEN, Array, Block, Graph, example, find, fuse, lengths, run

MS = "com.microsoft"
RMS, LAYER = "SkipSimplifiedLayerNormalization", "SkipLayerNormalization"


def norm(g: Graph, x: str, b: Block) -> str:
    """The norm as one operator."""
    if b.kind == "rms":
        return str(g.node("SimplifiedLayerNormalization", x, g.weight(b.gain), epsilon=b.eps))
    return str(g.node("LayerNormalization", x, g.weight(b.gain), g.weight(b.shift), epsilon=b.eps))


def skip_norm(
    g: Graph, x: str, f: str, b: Block, *, flip: bool = False, bias: Array | None = None, summed: bool = True
) -> tuple[str, str]:
    """The norm of `b` over x + f, with the sum behind it."""
    layer = b.kind == "layer"
    inputs = [*((f, x) if flip else (x, f)), g.weight(b.gain), *([g.weight(b.shift)] if layer else [])]
    inputs += [g.weight(bias)] if bias is not None else []
    y, _, _, total = g.node(LAYER if layer else RMS, *inputs, outputs=4, domain=MS, epsilon=b.eps)
    kept = [y, "", "", total] if summed else [y]
    del g.nodes[-1].output[:]
    g.nodes[-1].output.extend(kept)
    return y, total


def branch(g: Graph, h: str, b: Block) -> tuple[str, Array | None]:
    """FFN(h) without the bias of down, which goes into the Skip node after it."""
    bias = b.biases.pop("down", None)
    f = g.ffn(h, b)
    if bias is not None:
        b.biases["down"] = bias
    g.blocks.append(b)
    return f, bias


def chain(
    g: Graph,
    count: int = 3,
    kind: str = "rms",
    flips: Any = (),
    biased: Any = (),
    *,
    first_skip: bool = False,
    tail: str = "norm",
) -> tuple[onnx.ModelProto, Block]:
    """Norm, then only Skip nodes; the last holds the final norm. Gives the final norm's meaning, too.

    first_skip: the stream is x + tanh(x), whose sum stands in the Skip node of the first norm.
    tail: "norm" (only the final norm is read), "sum" (its sum is an output, too) or "unread" (it is named).
    """
    flips, biased = [*flips, *[False] * count], [*biased, *[False] * count]
    blocks = [
        g.new_block(5 + index, kind=kind, shift=g.draw(HIDDEN) if kind == "layer" else None)
        for index in range(count + 1)
    ]
    for block, has in zip(blocks, biased, strict=False):
        block.biases |= {"down": g.draw(HIDDEN)} if has else {}
    x = "x"
    if first_skip:
        h, x = skip_norm(g, "x", g.node("Tanh", "x"), blocks[0], flip=flips[0])
    else:
        h = norm(g, x, blocks[0])
    for index in range(count):
        f, bias = branch(g, h, blocks[index])
        summed = tail != "norm" or index < count - 1
        h, x = skip_norm(g, x, f, blocks[index + 1], flip=flips[index], bias=bias, summed=summed)
    return g.model(*((h, x) if tail == "sum" else (h,))), blocks[-1]


def normed(x: Array, b: Block) -> Array:
    """The final norm in float64."""
    z = x - x.mean(-1, keepdims=True) if b.kind == "layer" else x
    y = z / np.sqrt((z * z).mean(-1, keepdims=True) + b.eps) * b.gain.astype(np.float64)
    return y if b.shift is None else y + b.shift.astype(np.float64)


def types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def by_name(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


# Chains of Skip nodes


@settings(max_examples=30)
@given(
    kind=st.sampled_from(["rms", "layer"]),
    count=st.integers(2, 4),
    flips=st.lists(st.booleans(), min_size=4, max_size=4),
    biased=st.lists(st.booleans(), min_size=4, max_size=4),
    first_skip=st.booleans(),
    tail=st.sampled_from(["norm", "sum", "unread"]),
)
def test_any_chain_of_skip_nodes(kind, count, flips, biased, first_skip, tail) -> None:
    g = Graph()
    model, final = chain(g, count, kind, flips, biased, first_skip=first_skip, tail=tail)
    assert lengths(find(model)) == [count]
    fused = fuse(model)
    x0 = example() + np.tanh(example()) if first_skip else example()
    expected = g.parallel(x0)
    results = run(fused, example())
    np.testing.assert_allclose(results[0], normed(expected, final), rtol=1e-4, atol=1e-4)
    assert len(results) == (2 if tail == "sum" else 1)
    if tail == "sum":
        np.testing.assert_allclose(results[1], expected, rtol=1e-4, atol=1e-4)
    skip = RMS if kind == "rms" else LAYER
    assert types(fused).count(skip) == (2 if first_skip else 1)
    assert types(fused).count(skip.removeprefix("Skip")) == (0 if first_skip else 1)


@pytest.mark.parametrize("flip", [False, True])
def test_the_last_skip_node_reads_x0_and_the_wide_branch(flip: bool) -> None:
    g = Graph()
    model, _ = chain(g, flips=[flip] * 3)
    fused = fuse(model)
    before, after = model.graph.node[-1], fused.graph.node[-1]
    assert list(after.input[:2]) == (["fxfuse.0/down_proj", "x"] if flip else ["x", "fxfuse.0/down_proj"])
    assert list(after.input[2:]) == list(before.input[2:])
    for field in ("name", "op_type", "domain", "attribute", "output"):
        assert getattr(after, field) == getattr(before, field)


def test_the_first_skip_node_gets_unit_gain_and_keeps_its_bias() -> None:
    g = Graph()
    gain, bias = g.draw(HIDDEN), g.draw(HIDDEN)
    start = Block(gain, *(g.draw(1),) * 3, kind="layer", shift=g.draw(HIDDEN), eps=1e-6)
    h, x = skip_norm(g, "x", g.node("Tanh", "x"), start, bias=bias)
    for index in range(2):
        block = g.new_block(kind="layer")
        block.gain, block.shift = start.gain, start.shift
        f, _ = branch(g, h, block)
        start = g.new_block(kind="layer", shift=g.draw(HIDDEN))
        h, x = skip_norm(g, x, f, start, summed=index < 1)
    model = g.model(h)
    assert lengths(find(model)) == [2]
    fused = fuse(model)
    before, after = model.graph.node[1], fused.graph.node[1]
    ones = {tensor.name: numpy_helper.to_array(tensor) for tensor in fused.graph.initializer}[after.input[2]]
    assert (ones == 1.0).all()
    assert list(after.input) == [*before.input[:2], after.input[2], "", before.input[4]]
    assert (after.op_type, after.output[3], after.attribute) == (LAYER, before.output[3], before.attribute)
    expected = normed(g.parallel(example() + np.tanh(example()) + bias), start)
    np.testing.assert_allclose(run(fused, example())[0], expected, rtol=1e-4, atol=1e-4)


def test_half_precision() -> None:
    g = Graph(np.float16)
    model, final = chain(g, first_skip=True)
    for node in model.graph.node:
        for attribute in node.attribute:
            attribute.f = 1e-3
    final.eps = 1e-3
    for block in g.blocks:
        block.eps = 1e-3
    x = example(np.float16)
    expected = normed(g.parallel(x.astype(np.float64) + np.tanh(x.astype(np.float64))), final)
    (result,) = run(fuse(model), x)
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, expected, rtol=3e-2, atol=3e-2)


# What was not touched


def test_all_but_the_group_is_byte_for_byte() -> None:
    """A group of two in the middle of four blocks; what hides others outside of it stays as it was"""
    g = Graph()
    start = g.node("BiasGelu", "x", g.weight(g.draw(HIDDEN)), domain=MS)
    g.nodes.append(helper.make_node("Identity", [start], ["kept"], "kept"))
    h = norm(g, "kept", first := g.new_block())
    x, blocks = "kept", [first, *(g.new_block() for _ in range(4))]
    for index in range(4):
        f, _ = branch(g, h, blocks[index])
        h, x = skip_norm(g, x, f, blocks[index + 1])
    model = g.model(h)
    for node in model.graph.node:
        node.doc_string = f"doc of {node.name}"
        node.metadata_props.add(key="mine", value=node.name)
    fused = fuse(model, [(1, 2)])
    before, after = by_name(model), by_name(fused)
    changed = [after[name] for name in after if name in before and after[name] != before[name]]
    assert [node.op_type for node in changed] == [RMS, RMS]
    assert [n for n in after if n in before] == [n for n in before if n in after]
    gone = [node for name, node in before.items() if name not in after]
    assert [node.op_type for node in gone].count(RMS) == 1
    assert all(node.doc_string and node.metadata_props for node in changed)
    np.testing.assert_allclose(
        run(fused, example())[0],
        normed(g.parallel(np.asarray(run_first(model)), [(0,), (1, 2), (3,)]), blocks[-1]),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def run_first(model: onnx.ModelProto) -> Array:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output[0].name = "kept"
    return run(copy, example())[0]


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu", "Skip", "call"])
def test_without_a_rewrite_nothing_changes(op: str) -> None:
    g = Graph()
    if op == "Skip":
        model, _ = chain(g, 2, "layer", biased=[True, False])
    elif op == "call":
        model = with_layers(Graph(), 2)
    else:
        model = g.model(g.node(op, "x", g.weight(g.draw(HIDDEN)), domain=MS))
    expanded = expand(model)
    assert expanded.model is not model
    same = contract(expanded.model, expanded)
    assert same.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_part_whose_inside_became_an_output_stays_a_part() -> None:
    g = Graph()
    expanded = expand(g.model(g.node("BiasGelu", "x", g.weight(g.draw(HIDDEN)), domain=MS)))
    inside = expanded.model.graph.node[0].output[0]
    expanded.model.graph.output.append(helper.make_tensor_value_info(inside, TensorProto.FLOAT, None))
    assert types(contract(expanded.model, expanded)) == ["Add", "Gelu"]


def test_a_sum_without_its_norm_stays_an_add() -> None:
    g = Graph()
    model, _ = chain(g, 2)
    expanded = expand(model)
    nodes = [node for node in expanded.model.graph.node if not node.name.endswith(".norm")]
    del expanded.model.graph.node[:]
    expanded.model.graph.node.extend(nodes)
    left = contract(expanded.model, expanded)
    assert types(left).count("Add") == 2
    assert RMS not in types(left)


def test_a_norm_with_a_gain_that_is_computed_later_stays_a_norm() -> None:
    """The node would read its gain before it is there"""
    g = Graph()
    model, _ = chain(g, 2)
    expanded = expand(model)
    graph = expanded.model.graph
    (last,) = (node for node in graph.node if node.name.endswith(".norm") and node is graph.node[-1])
    gain = helper.make_node("Abs", [last.input[1]], ["later"], "later")
    last.input[1] = "later"
    graph.node.insert(len(graph.node) - 1, gain)
    assert types(contract(expanded.model, expanded))[-3:] == ["Add", "Abs", "SimplifiedLayerNormalization"]


# Local functions


def layer_function(g: Graph, name: str, block: Block, attribute: bool = False) -> onnx.FunctionProto:
    """A whole block as a function of its stream and its weights."""
    inner = Graph()
    inner.random = g.random
    y = inner.block("x", block)
    g.blocks.append(block)
    nodes = [
        *(helper.make_node("Constant", [], [key], value=tensor) for key, tensor in inner.weights.items()),
        *inner.nodes,
    ]
    return helper.make_function("local", name, ["x"], [y], nodes, [helper.make_opsetid("", g.opset)])


def with_layers(g: Graph, count: int) -> onnx.ModelProto:
    """Blocks that are functions, between two calls of a function that is no block."""
    twice = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", g.opset)],
    )  # fmt: skip
    x = g.node("Twice", "x", domain="local")
    functions = [twice]
    for index in range(count):
        functions.append(layer_function(g, f"Layer{index}", g.new_block(5 + index)))
        x = g.node(f"Layer{index}", x, domain="local")
    model = g.model(g.node("Twice", x, domain="local"))
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def test_blocks_that_are_functions() -> None:
    g = Graph()
    model = with_layers(g, 4)
    assert lengths(find(model)) == [4]
    fused = fuse(model, [(1, 2)])
    assert [node.op_type for node in fused.graph.node if node.domain == "local"] == [
        "Twice", "Layer0", "Layer3", "Twice",
    ]  # fmt: skip
    assert [each.name for each in fused.functions] == ["Twice", "Layer0", "Layer3"]
    before, after = by_name(model), by_name(fused)
    assert all(after[name] == before[name] for name in before if name in after)
    expected = 2 * g.parallel(2.0 * example(), [(0,), (1, 2), (3,)])
    np.testing.assert_allclose(run(fused, example())[0], expected, rtol=1e-4, atol=1e-4)


def test_a_chain_inside_of_one_function() -> None:
    """The call goes, its other nodes stay; a function that was never called stays, too"""
    g = Graph()
    inner = Graph()
    inner.random = g.random
    y = inner.node("Tanh", inner.block(inner.block(inner.node("Relu", "x"))))
    weights = list(inner.weights)
    body = helper.make_function(
        "local", "Body", ["x", *weights], [y], inner.nodes, [helper.make_opsetid("", g.opset)]
    )
    g.weights = inner.weights
    model = g.model(g.node("Body", "x", *weights, domain="local"))
    nodes = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.extend(
        [body, helper.make_function("local", "Other", ["a"], ["b"], nodes, body.opset_import)]
    )
    model.opset_import.append(helper.make_opsetid("local", 1))
    found = find(model)
    assert lengths(found) == [2]
    assert [block.name for block in found.chains[0].blocks] == ["layers.0", "layers.1"]
    fused = fuse(model)
    assert [each.name for each in fused.functions] == ["Other"]
    assert "Tanh" in types(fused)
    expected = np.tanh(inner.parallel(np.maximum(example(), 0)))
    np.testing.assert_allclose(run(fused, example())[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("used", [False, True])
def test_a_domain_of_the_working_copy_goes_unless_it_is_used(used: bool) -> None:
    """Gelu of com.microsoft, which only the function names"""
    g = Graph()
    body = [helper.make_node("Gelu", ["a"], ["b"], domain=MS), helper.make_node("Neg", ["b"], ["c"])]
    act = helper.make_function(
        "local", "Act", ["a"], ["c"], body, [helper.make_opsetid("", 20), helper.make_opsetid(MS, 1)]
    )
    model = g.model(g.node("Act", "x", domain="local"))
    model.functions.append(act)
    model.opset_import.append(helper.make_opsetid("local", 1))
    kept = [each for each in model.opset_import if each.domain != MS]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    expanded = expand(model)
    if used:
        expanded.model.graph.node[1].op_type = "Abs"
    result = contract(expanded.model, expanded)
    assert [each.domain for each in result.opset_import] == ["", "local", *([MS] if used else [])]
