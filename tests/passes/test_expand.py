"""What an operator that hides several stands for: the working copy computes what the original does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from fxfuse.passes.onnx.expand import expand
from fxfuse.sessions import session
from tests.passes.onnx_graphs import HIDDEN, Array, Graph, example, find, reasons, view_of

MS = "com.microsoft"
Write = Callable[[Graph], Any]


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def skip(
    g: Graph, op: str, x: str, f: str, *, bias: bool, beta: bool = False, shifted: str = ""
) -> list[str]:
    """A Skip node with its norm's and its sum's names."""
    layer = op == "SkipLayerNormalization"
    shift = [g.weight(g.draw(HIDDEN)) if beta else ""] if layer else []
    inputs = [x, f, g.weight(g.draw(HIDDEN, centre=1.0)), *shift, g.weight(g.draw(HIDDEN)) if bias else ""]
    while not inputs[-1]:
        inputs.pop()
    y, *_, total = g.node(op, *inputs, outputs=4, domain=MS, epsilon=1e-3)
    g.nodes[-1].output[1] = g.nodes[-1].output[2] = ""
    return [y, total]


def run(model: onnx.ModelProto, x: Array) -> list[Array]:
    """All outputs in ONNX Runtime; onnx's checker wants types of outputs, which these graphs leave out."""
    return list(session(model.SerializeToString(), "cpu").run(None, {"x": x}))


# The numbers


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_skip_nodes(op: str, flip: bool, bias: bool, beta: bool, dtype: type) -> None:
    """s = x + (f + bias), y = norm(s) * gamma + beta"""
    g = Graph(dtype)
    f = g.node("MatMul", "x", g.weight(g.draw(HIDDEN, HIDDEN)))
    y, total = skip(g, op, *(("x", f)[:: -1 if flip else 1]), bias=bias, beta=beta)
    model = g.model(y, total)
    copy = expand(model).model
    norm = op.removeprefix("Skip")
    assert ops(copy) == ["MatMul", *(["Add"] if bias else []), "Add", norm]
    bound = {np.float32: 1e-6, np.float16: 4e-3}[dtype]
    for one, other in zip(run(model, example(dtype)), run(copy, example(dtype)), strict=True):
        np.testing.assert_allclose(one, other, rtol=bound, atol=bound)


def test_a_skip_node_without_a_sum_gets_one() -> None:
    g = Graph()
    y, _ = skip(g, "SkipSimplifiedLayerNormalization", "x", g.node("Tanh", "x"), bias=False)
    del g.nodes[-1].output[1:]
    model = g.model(y)
    copy = expand(model).model
    assert ops(copy) == ["Tanh", "Add", "SimplifiedLayerNormalization"]
    assert copy.graph.node[1].output[0] == f"{model.graph.node[-1].name}.add"
    np.testing.assert_allclose(run(copy, example())[0], run(model, example())[0], rtol=1e-6, atol=1e-6)


def test_a_skip_node_takes_its_own_default_eps() -> None:
    """1e-12, where the norms have 1e-5"""
    g = Graph()
    y, _ = skip(g, "SkipSimplifiedLayerNormalization", "x", g.node("Tanh", "x"), bias=False)
    del g.nodes[-1].attribute[:]
    (eps,) = (a.f for a in expand(g.model(y)).model.graph.node[-1].attribute if a.name == "epsilon")
    assert eps == pytest.approx(1e-12)


@pytest.mark.parametrize("flip", [False, True])
def test_the_bias_goes_to_the_operand_that_is_computed_later(flip: bool) -> None:
    """A branch is computed from its stream; here the stream is computed, too"""
    g = Graph()
    x = g.node("Relu", "x")
    f = g.node("MatMul", g.node("Tanh", x), g.weight(g.draw(HIDDEN, HIDDEN)))
    y, _ = skip(g, "SkipLayerNormalization", *((x, f)[:: -1 if flip else 1]), bias=True)
    biased, total, _ = expand(g.model(y)).model.graph.node[-3:]
    assert biased.input[0] == f
    assert list(total.input) == [x, biased.output[0]][:: -1 if flip else 1]


def gelu(x: Array) -> Array:
    return F.gelu(torch.from_numpy(x)).numpy()


def fast_gelu(x: Array) -> Array:
    return F.gelu(torch.from_numpy(x), approximate="tanh").numpy()


def silu(x: Array) -> Array:
    return F.silu(torch.from_numpy(x)).numpy()


BIAS = np.linspace(-1, 1, HIDDEN)
WEIGHT = np.random.default_rng(3).standard_normal((HIDDEN, HIDDEN))
MEANINGS: list[tuple[Write, Callable[[Array], Array], list[str]]] = [
    (lambda g: g.node("BiasGelu", "x", g.weight(BIAS), domain=MS), lambda x: gelu(x + BIAS), ["Add", "Gelu"]),
    (
        lambda g: g.node("FastGelu", "x", g.weight(BIAS), domain=MS),
        lambda x: fast_gelu(x + BIAS),
        ["Add", "FastGelu"],
    ),
    (
        lambda g: g.node("BiasAdd", "x", g.weight(BIAS), g.node("Tanh", "x"), domain=MS),
        lambda x: x + BIAS + np.tanh(x),
        ["Tanh", "Add", "Add"],
    ),
    (
        lambda g: g.node("BiasSplitGelu", "x", g.weight(BIAS), domain=MS),
        lambda x: (x + BIAS)[..., :4] * gelu((x + BIAS)[..., 4:]),
        ["Add", "Split", "Gelu", "Mul"],
    ),
    (
        lambda g: g.node("GemmFastGelu", "x", g.weight(WEIGHT), domain=MS),
        lambda x: fast_gelu(x @ WEIGHT),
        ["MatMul", "FastGelu"],
    ),
    (
        lambda g: g.node("GemmFastGelu", "x", g.weight(WEIGHT), g.weight(BIAS), domain=MS),
        lambda x: fast_gelu(x @ WEIGHT + BIAS),
        ["MatMul", "Add", "FastGelu"],
    ),
    (
        lambda g: g.node(
            "FusedMatMulActivation", "x", g.weight(WEIGHT.T), domain=MS, transB=1, activation="Relu"
        ),
        lambda x: np.maximum(x @ WEIGHT, 0),
        ["FusedMatMul", "Relu"],
    ),
]


@pytest.mark.parametrize("opset", [14, 20])
@pytest.mark.parametrize(("write", "meaning", "names"), MEANINGS)
def test_operators_that_hide_a_bias_or_an_activation(
    write: Write, meaning: Callable[[Array], Array], names: list[str], opset: int
) -> None:
    g = Graph(opset=opset)
    copy = expand(g.model(write(g), shaped=False)).model
    assert ops(copy) == names
    expected = meaning(example().astype(np.float64))
    np.testing.assert_allclose(run(copy, example())[0], expected, rtol=1e-5, atol=1e-5)


def flat(g: Graph, *, last: str) -> str:
    return g.node("Reshape", last, g.ints(-1, HIDDEN))


@pytest.mark.parametrize(
    ("activation", "given", "function"),
    [
        ("Relu", {}, lambda y: F.relu(y)),
        ("Tanh", {}, torch.tanh),
        ("LeakyRelu", {"activation_alpha": 0.3}, lambda y: F.leaky_relu(y, 0.3)),
        ("", {}, lambda y: y),
    ],
)
def test_fused_gemm(activation: str, given: dict[str, float], function: Callable[..., torch.Tensor]) -> None:
    g = Graph()
    settings = given | ({"activation": activation} if activation else {})
    y = g.node(
        "FusedGemm", flat(g, last="x"), g.weight(WEIGHT.T), g.weight(BIAS), domain=MS, transB=1, alpha=2.0,
        **settings,
    )  # fmt: skip
    model = g.model(y, shaped=False)
    copy = expand(model).model
    assert ops(copy) == ["Reshape", "Gemm", *([activation] if activation else [])]
    rows = torch.from_numpy(example().reshape(-1, HIDDEN).astype(np.float64))
    expected = function(2.0 * rows @ torch.from_numpy(WEIGHT) + torch.from_numpy(BIAS))
    np.testing.assert_allclose(run(copy, example())[0], expected, rtol=1e-5, atol=1e-5)
    if activation:  # ONNX Runtime has no kernel without one
        np.testing.assert_allclose(run(copy, example())[0], run(model, example())[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("before", ["nothing", "norm", "skip"])
def test_quantised_gate_and_up_in_one_node(before: str) -> None:
    """y = silu(h G + b) * (h U + c), h = norm(x + f) or norm(x) or x"""
    g, size = Graph(), 32
    g.random = np.random.default_rng(5)

    def quantised(bias: bool) -> tuple[list[str], Array]:
        q = g.random.integers(0, 16, (size, size))  # [N, K]
        scale = g.draw(size, spread=0.1)
        packed = (q[:, 0::2] | q[:, 1::2] << 4).astype(np.uint8)[:, None]
        b = g.draw(size)
        names = [g.weight(packed, dtype=np.uint8), g.weight(scale), g.weight(b) if bias else ""]
        return names, np.stack([*((q - 8.0) * scale[:, None]).T, b if bias else 0 * b])

    gate, up = quantised(True), quantised(False)
    gain = g.draw(size, centre=1.0)
    wide = g.node("Concat", "x", "x", "x", "x", axis=-1)
    other = g.node("Tanh", wide)
    y, total = g.node(
        "MatMulNBitsMlp", wide, other if before == "skip" else "",
        g.weight(gain) if before != "nothing" else "", *gate[0], *up[0], outputs=2,
        domain=MS, activation="silu", bits=4, block_size=32, K=size, N=size, epsilon=1e-3,
    )  # fmt: skip
    if before != "skip":
        del g.nodes[-1].output[1]
    copy = expand(g.model(*((y, total) if before == "skip" else (y,)), shaped=False)).model
    h = np.concatenate([example().astype(np.float64)] * 4, -1)
    h = h + np.tanh(h) if before == "skip" else h
    sums = h
    if before != "nothing":
        h = h / np.sqrt((h * h).mean(-1, keepdims=True) + 1e-3) * gain
    expected = silu(h @ gate[1][:-1] + gate[1][-1]) * (h @ up[1][:-1] + up[1][-1])
    found = run(copy, example())
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
    assert len(found) == (2 if before == "skip" else 1)
    if before == "skip":
        np.testing.assert_allclose(found[1], sums, rtol=1e-5, atol=1e-5)


# Local functions


def function(
    name: str, inputs: list[str], outputs: list[str], nodes: list[onnx.NodeProto], **more: Any
) -> Any:
    opsets = [helper.make_opsetid("", more.pop("opset", 20)), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, inputs, outputs, nodes, opsets, **more)


def calling(g: Graph, *outputs: str, functions: list[Any]) -> onnx.ModelProto:
    model = g.model(*outputs, shaped=False)
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def leaky() -> Any:
    """Its slope is the caller's, 0.25 where it says nothing."""
    node = helper.make_node("LeakyRelu", ["a"], ["b"])
    node.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    default = helper.make_attribute("slope", 0.25)
    return function("Leaky", ["a"], ["b"], [node], attribute_protos=[default])


def same_numbers(model: onnx.ModelProto) -> onnx.ModelProto:
    before = model.SerializeToString(deterministic=True)
    copy = expand(model).model
    assert model.SerializeToString(deterministic=True) == before
    for one, other in zip(run(model, example()), run(copy, example()), strict=True):
        np.testing.assert_array_equal(one, other)
    return copy


def test_calls_are_written_out_with_the_callers_attributes() -> None:
    g = Graph()
    first = g.node("Leaky", "x", domain="local", slope=0.5)
    copy = same_numbers(calling(g, g.node("Leaky", first, domain="local"), functions=[leaky()]))
    assert [(node.op_type, node.attribute[0].f) for node in copy.graph.node] == [
        ("LeakyRelu", 0.5), ("LeakyRelu", 0.25),
    ]  # fmt: skip


def test_an_attribute_that_nobody_gives_is_left_out() -> None:
    body = leaky()
    del body.attribute_proto[:]
    body.attribute.append("slope")
    g = Graph()
    model = calling(g, g.node("Leaky", "x", domain="local"), functions=[body])
    assert not expand(model).model.graph.node[0].attribute


def test_calls_within_calls_and_inputs_left_out() -> None:
    """Clip's bounds are optional"""
    body = [helper.make_node("Clip", ["a", "low", "high"], ["b"])]
    clip = function("Cut", ["a", "low", "high"], ["b"], body)
    body = [
        helper.make_node("Cut", ["a", "low"], ["c"], domain="local"),
        helper.make_node("Neg", ["c"], ["b"]),
    ]
    outer = function("Outer", ["a", "low"], ["b"], body)
    g = Graph()
    y = g.node("Outer", "x", g.weight(-0.5), domain="local")
    copy = same_numbers(calling(g, g.node("Outer", y, domain="local"), functions=[clip, outer]))
    assert ops(copy) == ["Clip", "Neg", "Clip", "Neg"]
    assert [list(node.input) for node in copy.graph.node if node.op_type == "Clip"][1] == [y, "", ""]


def test_an_input_that_a_function_hands_through() -> None:
    body = [helper.make_node("Neg", ["a"], ["b"])]
    g = Graph()
    y, same = g.node("Both", "x", outputs=2, domain="local")
    model = calling(g, y, same, functions=[function("Both", ["a"], ["b", "a"], body)])
    copy = expand(model).model
    assert ops(copy) == ["Neg", "Identity"]
    del copy.functions[:]  # ONNX Runtime refuses the function itself
    for found, expected in zip(run(copy, example()), [-example(), example()], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_bodies_inside_of_a_function_are_renamed_too() -> None:
    branches = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "Abs")):
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        nodes = [helper.make_node(op, ["twice"], [out.name])]
        branches[name] = helper.make_graph(nodes, name, [], [out])
    body = [
        helper.make_node("Add", ["a", "a"], ["twice"]),
        helper.make_node("If", ["condition"], ["b"], **branches),
    ]
    choose = function("Choose", ["a", "condition"], ["b"], body)
    g = Graph()
    yes, no = (g.weight(value, dtype=bool) for value in (True, False))
    first = g.node("Choose", "x", yes, domain="local")
    copy = same_numbers(calling(g, g.node("Choose", first, no, domain="local"), functions=[choose]))
    outputs = [name for node in copy.graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs)


def test_names_that_are_taken_are_left_alone() -> None:
    twice = function(
        "Double", ["a"], ["b"],
        [helper.make_node("Identity", ["a"], ["c"]), helper.make_node("Add", ["c", "a"], ["b"])],
    )  # fmt: skip
    g = Graph()
    g.node("Neg", "x")
    g.nodes[-1].output[0] = "n1/c"
    y = g.node("Double", "n1/c", domain="local")
    copy = same_numbers(calling(g, y, functions=[twice]))
    assert [list(node.output) for node in copy.graph.node] == [["n1/c"], ["n1/c_1"], [y]]


def test_an_operator_that_hides_others_inside_of_a_function() -> None:
    body = [helper.make_node("BiasGelu", ["a", "bias"], ["b"], domain=MS)]
    act = helper.make_function(
        "local", "Act", ["a", "bias"], ["b"], body, [helper.make_opsetid("", 20), helper.make_opsetid(MS, 1)]
    )
    g = Graph()
    copy = same_numbers(calling(g, g.node("Act", "x", g.weight(BIAS), domain="local"), functions=[act]))
    assert ops(copy) == ["Add", "Gelu"]


def test_a_domain_that_only_a_function_names_is_named_in_the_copy() -> None:
    body = [helper.make_node("Gelu", ["a"], ["b"], domain=MS)]
    act = helper.make_function(
        "local", "Act", ["a"], ["b"], body, [helper.make_opsetid("", 20), helper.make_opsetid(MS, 1)]
    )
    g = Graph()
    model = calling(g, g.node("Act", "x", domain="local"), functions=[act])
    kept = [each for each in model.opset_import if each.domain != MS]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    found = expand(model)
    assert found.opsets == {MS}
    assert MS in {each.domain for each in found.model.opset_import}


@pytest.mark.parametrize(("op", "whole"), [("Neg", False), ("Softmax", True)])
def test_a_function_for_another_opset(op: str, whole: bool) -> None:
    """Neg is the same since opset 13, Softmax means something else from 13 on"""
    old = function("Old", ["a"], ["b"], [helper.make_node(op, ["a"], ["b"])], opset=12 if whole else 14)
    g = Graph()
    y = g.node("Old", "x", domain="local")
    found = expand(calling(g, y, functions=[old]))
    assert ops(found.model) == (["Old"] if whole else [op])
    reason = (
        "the function Old is not looked into, since its Softmax is of opset 12 and the model's of opset 20"
    )
    assert dict(found.whole) == ({y: reason} if whole else {})


# What stays whole, and what is copied


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (
            lambda g: g.node(
                "SkipLayerNormalization", "x", "x", g.weight(BIAS), outputs=3, domain=MS, epsilon=1e-3
            )[0],
            "the add inside of it cannot be seen, since its output mean is in use",
        ),
        (
            lambda g: g.node(
                "FusedMatMulActivation", "x", g.weight(WEIGHT), domain=MS, activation="ScaledTanh"
            ),
            "the product inside of it cannot be seen, since its activation ScaledTanh is not known",
        ),
        (
            lambda g: g.node("MatMulNBitsMlp", "x", "", "", *"abcdef", domain=MS, activation="gelu"),
            "the products inside of it cannot be seen, since its activation gelu is not known",
        ),
        (
            lambda g: g.node("Old", "x", domain="local"),
            "the function Old is not looked into, since its Softmax is of opset 12 and the model's of opset "
            "20",
        ),
    ],
)
def test_what_stays_whole_says_why(write: Write, reason: str) -> None:
    g = Graph()
    old = function("Old", ["a"], ["b"], [helper.make_node("Softmax", ["a"], ["b"])], opset=12)
    model = calling(g, write(g), functions=[old])
    assert expand(model).model is model
    assert reasons(find(model)) == f"n0: {reason}"


def test_a_model_that_hides_nothing_is_its_own_copy() -> None:
    g = Graph()
    model = g.model(g.node("FastGelu", g.block(g.block("x")), domain=MS))
    assert expand(model).model is model


def test_tensors_are_carried_as_they_are() -> None:
    g = Graph()
    model = g.model(g.node("BiasGelu", g.node("Mul", "x", g.weight(BIAS, "far")), g.weight(BIAS), domain=MS))
    (far,) = (tensor for tensor in model.graph.initializer if tensor.name == "far")
    far.ClearField("raw_data")
    far.data_location = TensorProto.EXTERNAL
    far.external_data.add(key="location", value="weights.bin")
    model.metadata_props.add(key="author", value="someone")
    copy = expand(model).model
    assert list(copy.graph.initializer) == list(model.graph.initializer)
    for field, value in model.ListFields():
        assert field.name == "graph" or getattr(copy, field.name) == value


def test_parts_say_where_they_come_from() -> None:
    g = Graph()
    y, _ = skip(g, "SkipSimplifiedLayerNormalization", "x", g.node("Tanh", "x"), bias=False)
    g.nodes[-1].name = "/model/layers.1/post_attention_layernorm/SkipLayerNorm"
    g.nodes[-1].metadata_props.add(key="mine", value="1")
    parts = expand(g.model(y)).model.graph.node[1:]
    assert all([(each.key, each.value) for each in node.metadata_props] == [("mine", "1")] for node in parts)
    view = view_of(g.model(y))
    assert view.scope(parts[0].output[0]) == "model.layers.1.post_attention_layernorm"


def test_weights_of_any_kind_are_copied_once() -> None:
    """The copy's tensors are the original's, byte for byte"""
    g = Graph()
    big = g.weight(np.zeros((64, 64)), "big")
    model = g.model(g.node("BiasGelu", "x", g.weight(BIAS), domain=MS), g.node("Identity", big), shaped=False)
    copy = expand(model).model
    assert numpy_helper.to_array(copy.graph.initializer[0]).shape == (64, 64)
    assert copy.ByteSize() < model.ByteSize() + 500
