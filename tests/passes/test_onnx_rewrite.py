"""The rewritten ONNX graph computes the parallel sum in ONNX Runtime; taps and differing neighbours stay."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from fxfuse.passes.onnx.upcast import upcast
from fxfuse.passes.onnx.writer import Writer
from tests.passes.onnx_graphs import HIDDEN, Block, Graph, example, find, fuse, lengths, reasons, run, view_of


def chain_of(g: Graph, widths: list[int], **meaning: Any) -> str:
    x = "x"
    for width in widths:
        x = g.block(x, g.new_block(width, **meaning))
    return x


def operator(g: Graph, x: str, b: Block) -> str:
    return g.node("SimplifiedLayerNormalization", x, g.weight(b.gain), epsilon=b.eps)


def layer_operator(g: Graph, x: str, b: Block) -> str:
    return g.node("LayerNormalization", x, g.weight(b.gain), g.weight(b.shift), epsilon=b.eps)


# What the wide FFN computes


@settings(max_examples=25)
@given(
    widths=st.lists(st.integers(2, 13), min_size=2, max_size=5),
    cuts=st.sets(st.integers(1, 4)),
    biased=st.lists(st.sets(st.sampled_from(["gate", "up", "down"])), min_size=5, max_size=5),
    scaled=st.lists(st.sampled_from([None, 0.5, "vector"]), min_size=5, max_size=5),
    flips=st.lists(st.booleans(), min_size=5, max_size=5),
    shift=st.booleans(),
    gated=st.booleans(),
)
def test_any_groups_of_any_chain(widths, cuts, biased, scaled, flips, shift, gated) -> None:
    g, x = Graph(), "x"
    for width, roles, scale, flip in zip(widths, biased, scaled, flips, strict=False):
        block = g.new_block(width, gated=gated, kind="layer" if shift else "rms")
        block.shift = g.draw(HIDDEN) if shift else None
        block.biases = {
            role: g.draw(HIDDEN if role == "down" else width) for role in roles if gated or role != "up"
        }
        block.scale = g.draw(HIDDEN) if scale == "vector" else scale or 1.0
        x = g.block(x, block, norm=layer_operator if shift else None, add=scaled_add(g, block, scale, flip))
    bounds = [0, *sorted(cut for cut in cuts if cut < len(widths)), len(widths)]
    groups = [tuple(range(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]
    model = g.model(x)
    assert lengths(find(model)) == [len(widths)]
    wide = [group for group in groups if len(group) > 1]
    fused = fuse(model, wide) if wide else model
    expected = g.parallel(example(), groups)
    np.testing.assert_allclose(
        run(fused, example())[0], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


def scaled_add(g: Graph, block: Block, scale: Any, flip: bool) -> Any:
    def add(x: str, f: str) -> str:
        f = f if scale is None else g.node("Mul", f, g.weight(block.scale))
        return g.node("Add", f, x) if flip else g.node("Add", x, f)

    return add


@pytest.mark.parametrize("norm", [None, operator, layer_operator])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_types_of_the_whole_model(norm: Any, dtype: type) -> None:
    if norm is operator and dtype is np.float64:
        pytest.skip("ONNX Runtime has no such kernel")
    g, x = Graph(dtype), "x"
    for width in (12, 5, 7):
        block = g.new_block(width, kind="layer" if norm is layer_operator else "rms", eps=1e-3)
        block.shift = g.draw(HIDDEN) if norm is layer_operator else None
        x = g.block(x, block, norm=norm)
    (fused,) = run(fuse(g.model(x)), example(dtype))
    assert fused.dtype == dtype
    bound = {np.float64: 1e-7, np.float32: 1e-5, np.float16: 3e-2}[dtype]
    np.testing.assert_allclose(fused, g.parallel(example(dtype)), rtol=bound, atol=bound)


def half_cast_norm(g: Graph, x: str, b: Block) -> str:
    """float32 between two casts, gain after"""
    wide = g.node("Cast", x, to=TensorProto.FLOAT)
    square = g.node("Pow", wide, g.weight(2.0, dtype=np.float32))
    eps = g.weight(b.eps, dtype=np.float32)
    root = g.node("Sqrt", g.node("Add", g.node("ReduceMean", square, g.ints(-1)), eps))
    unit = g.node("Cast", g.node("Div", wide, root), to=helper.np_dtype_to_tensor_dtype(g.dtype))
    return g.node("Mul", unit, g.weight(b.gain))


def late_cast_norm(g: Graph, x: str, b: Block) -> str:
    """The cast back comes after the gain, so the unit norm is float32"""
    wide = g.node("Cast", x, to=TensorProto.FLOAT)
    square = g.node("Mul", wide, wide)
    eps = g.weight(b.eps, dtype=np.float32)
    root = g.node("Sqrt", g.node("Add", g.node("ReduceMean", square, g.ints(-1)), eps))
    scaled = g.node("Mul", g.node("Div", wide, root), g.weight(b.gain, dtype=np.float32))
    return g.node("Cast", scaled, to=helper.np_dtype_to_tensor_dtype(g.dtype))


@pytest.mark.parametrize("norm", [half_cast_norm, late_cast_norm])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_norms_between_casts(norm: Any, dtype: Any) -> None:
    g, x = Graph(dtype), "x"
    for width in (12, 5):
        x = g.block(x, g.new_block(width, eps=1e-3), norm=norm)
    fused = fuse(g.model(x))
    onnx.checker.check_model(fused, full_check=True)
    given = example(dtype)
    if dtype is ml_dtypes.bfloat16:
        (result,) = run(upcast(fused), given.astype(np.float32))
    else:
        (result,) = run(fused, given)
    bound = 3e-2 if dtype is np.float16 else 0.1
    np.testing.assert_allclose(result.astype(np.float64), g.parallel(given), rtol=bound, atol=bound)


def test_a_float32_stream_over_half_precision_ffns() -> None:
    """Add takes one type: the wide branch is cast back as each branch was"""

    def ffn(g: Graph, h: str, b: Block) -> str:
        half = g.node("Cast", h, to=TensorProto.FLOAT16)
        gate, up = (g.node("MatMul", half, g.weight(each, dtype=np.float16)) for each in (b.gate, b.up))
        down = g.node("MatMul", g.node("Mul", g.silu(gate), up), g.weight(b.down, dtype=np.float16))
        return g.node("Cast", down, to=TensorProto.FLOAT)

    g, x = Graph(), "x"
    for width in (12, 5):
        x = g.block(x, g.new_block(width), ffn=ffn)
    fused = fuse(g.model(x))
    kinds = {tensor.name: tensor.data_type for tensor in fused.graph.initializer if "fxfuse" in tensor.name}
    assert set(kinds.values()) == {TensorProto.FLOAT16}
    np.testing.assert_allclose(run(fused, example())[0], g.parallel(example()), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 3), (3, 7)])
def test_open_sizes_stay_open(batch: int, length: int) -> None:
    g = Graph()
    fused = fuse(g.model(chain_of(g, [12, 5])))
    x = example(batch=batch, length=length)
    np.testing.assert_allclose(run(fused, x)[0], g.parallel(x), rtol=1e-5, atol=1e-5)


def test_any_opset() -> None:
    """ReduceMean takes its axes as an attribute before opset 18; new nodes use none that changed"""

    def norm(g: Graph, x: str, b: Block) -> str:
        mean = g.node("ReduceMean", g.node("Mul", x, x), axes=[-1], keepdims=1)
        root = g.node("Sqrt", g.node("Add", mean, g.weight(b.eps)))
        return g.node("Mul", g.node("Div", x, root), g.weight(b.gain))

    g, x = Graph(opset=11), "x"
    for width in (12, 5):
        x = g.block(x, g.new_block(width), norm=norm)
    fused = fuse(g.model(x, ir_version=6))
    assert [(each.domain, each.version) for each in fused.opset_import] == [("", 11), ("com.microsoft", 1)]
    np.testing.assert_allclose(run(fused, example())[0], g.parallel(example()), rtol=1e-5, atol=1e-5)


# How it is written


def test_what_is_written() -> None:
    g = Graph()
    block = g.new_block(5)
    block.biases = {role: g.draw(size) for role, size in (("gate", 5), ("down", HIDDEN))}
    model = g.model(g.block(g.block("x", g.new_block(12)), block))
    fused = fuse(model)
    new = [node for node in fused.graph.node if node.name.startswith("fxfuse.0/")]
    assert [node.op_type for node in new] == [
        "MatMul", "Add", "MatMul", "Sigmoid", "Mul", "Mul", "MatMul", "Add",
    ]  # fmt: skip
    assert [node.name for node in new] == [node.output[0] for node in new]
    add = fused.graph.node[-1]
    assert (add.op_type, list(add.input)) == ("Add", ["x", new[-1].output[0]])
    shapes = {
        each.name: list(each.dims) for each in fused.graph.initializer if each.name.startswith("fxfuse")
    }
    assert shapes == {
        "fxfuse.0/gate": [HIDDEN, 17], "fxfuse.0/up": [HIDDEN, 17], "fxfuse.0/down": [17, HIDDEN],
        "fxfuse.0/gate_bias": [17], "fxfuse.0/down_bias": [HIDDEN],
    }  # fmt: skip


def test_an_operator_that_applies_its_gain_gets_ones() -> None:
    g = Graph()
    fused = fuse(g.model(g.block(g.block("x", norm=operator), norm=operator)))
    (norm,) = (node for node in fused.graph.node if node.op_type == "SimplifiedLayerNormalization")
    assert norm.input[0] == "x"
    (ones,) = (each for each in fused.graph.initializer if each.name == norm.input[1])
    assert numpy_helper.to_array(ones).tolist() == [1.0] * HIDDEN
    assert [a.f for a in norm.attribute if a.name == "epsilon"] == [pytest.approx(1e-6)]


def test_names_that_are_taken_are_left_alone() -> None:
    g = Graph()
    g.node("Identity", g.weight(np.ones(HIDDEN), "fxfuse.0/gate"))
    g.nodes[-1].output[0] = "fxfuse.0/up"
    model = g.model(g.node("Add", chain_of(g, [12, 5]), "fxfuse.0/up"))
    fused = fuse(model)
    assert {"fxfuse.0/gate_1", "fxfuse.0/up_1"} <= {each.name for each in fused.graph.initializer}
    np.testing.assert_allclose(run(fused, example())[0], g.parallel(example()) + 1.0, rtol=1e-5, atol=1e-5)


def test_fusing_twice() -> None:
    """What a group became joins no other block; a chain of others beside it fuses under other names"""
    g = Graph()
    model = g.model(chain_of(g, [12, 5, 3, 4]))
    once = fuse(model, [(0, 1)])
    assert lengths(find(once)) == [2]
    twice = fuse(once)
    assert lengths(find(twice)) == []
    expected = g.parallel(example(), [(0, 1), (2, 3)])
    np.testing.assert_allclose(run(twice, example())[0], expected, rtol=1e-5, atol=1e-5)


def test_a_writer_names_everything_under_its_prefix() -> None:
    g = Graph()
    view = view_of(g.model(g.node("Relu", "x")))
    writer = Writer(view.graph, "p")
    outputs = [writer.node("Neg", [view.tensors["x"]], "neg").name for _ in range(3)]
    assert outputs == ["p/neg", "p/neg_1", "p/neg_2"]
    assert writer.constant("neg", np.ones(2, np.float32)).name == "p/neg_3"


# What ends a chain


def tapped_by_an_output(g: Graph) -> onnx.ModelProto:
    y = g.block("x")
    return g.model(g.block(y), y)


def tapped_by_a_reader(g: Graph) -> onnx.ModelProto:
    y = g.block("x")
    z = g.block(y)
    return g.model(g.node("Add", z, g.node("Neg", y)))


def tapped_by_a_subgraph(g: Graph) -> onnx.ModelProto:
    y = g.block("x")
    z = g.block(y)
    branches = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "Abs")):
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["b", "s", HIDDEN])
        branches[name] = helper.make_graph([helper.make_node(op, [y], [out.name])], name, [], [out])
    return g.model(g.node("Add", z, g.node("If", g.weight(True, dtype=bool), **branches)))


def tapped_through_an_identity(g: Graph) -> onnx.ModelProto:
    y = g.block("x")
    return g.model(g.block(y), g.node("Identity", y))


def norm_read_elsewhere(g: Graph) -> onnx.ModelProto:
    y, block = g.block("x"), g.new_block()
    h = g.rms(y, block)
    z = g.node("Add", y, g.ffn(h, block))
    return g.model(g.node("Add", z, g.node("Neg", h)))


def inside_is_an_output(g: Graph) -> onnx.ModelProto:
    y, block = g.block("x"), g.new_block()
    h = g.rms(y, block)
    return g.model(g.node("Add", y, g.ffn(h, block)), h)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (
            tapped_by_an_output,
            r"^layers.1: the residual stream after layers.0 is also a graph output \(add_13\)$",
        ),
        (
            tapped_through_an_identity,
            r"^layers.1: the residual stream after layers.0 is also a graph output \(identity_28\)$",
        ),
        (tapped_by_a_reader, r"^layers.1: the residual stream after layers.0 is also read by n28$"),
        (
            tapped_by_a_subgraph,
            r"^layers.1: the residual stream after layers.0 is also read by (then|else)_branch_out$",
        ),
        (norm_read_elsewhere, r"^layers.1: n20 inside layers.1 is also read by n28$"),
        (inside_is_an_output, r"^layers.1: n20 inside layers.1 is also a graph output$"),
    ],
)
def test_taps(write: Any, reason: str) -> None:
    g = Graph()
    model = write(g)
    found = find(model)
    assert not found.chains
    assert len(found.singles) == 2
    assert re.search(reason, reasons(found)), reasons(found)


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ({}, {"eps": 1e-5}, "eps differ from "),
        ({}, {"act": F.relu}, "activations differ from "),
        ({"act": F.relu}, {"act": F.relu, "gated": False}, "gated and ungated FFNs differ from "),
        ({}, {"eps": 1.0000001e-6}, None),
    ],
)
def test_neighbours_that_differ(one: dict[str, Any], other: dict[str, Any], reason: str | None) -> None:
    g = Graph()
    found = find(g.model(g.block(g.block("x", g.new_block(**one)), g.new_block(**other))))
    assert lengths(found) == ([] if reason else [2])
    assert reason is None or reason in reasons(found)


def test_post_norm_and_parallel_layers() -> None:
    g = Graph()
    block = g.new_block()
    post = g.rms(g.node("Add", "x", g.ffn("x", block)), block)
    found = find(g.model(post))
    assert "post-norm form" in reasons(found)
    g = Graph()
    block = g.new_block()
    other = g.node("Add", "x", g.node("MatMul", "x", g.weight(np.eye(HIDDEN))))
    found = find(g.model(g.node("Add", other, g.ffn(g.rms("x", block), block))))
    assert "attention and FFN stand in parallel" in reasons(found)


def measured(g: Graph) -> onnx.ModelProto:
    """Shape readers of each stream, whose sizes go into the output"""
    x, sizes = "x", []
    for width in (12, 5, 7):
        x = g.block(x, g.new_block(width))
        size = g.node("Gather", g.node("Shape", x), g.weight(1, dtype=np.int64))
        sizes.append(g.node("Cast", size, to=TensorProto.FLOAT))
    return g.model(g.node("Mul", x, g.node("Sum", *sizes)))


def test_readers_of_a_shape_read_the_first_stream() -> None:
    g = Graph()
    model = measured(g)
    assert lengths(find(model)) == [3]
    fused = fuse(model)
    shapes = [node.input[0] for node in fused.graph.node if node.op_type == "Shape"]
    assert shapes[:2] == ["x", "x"]
    assert len(shapes) == 3
    np.testing.assert_allclose(run(fused, example())[0], 9 * g.parallel(example()), rtol=1e-5, atol=1e-5)


def test_a_size_for_the_blocks_own_reshape_goes_with_the_block() -> None:
    def ffn(g: Graph, h: str, b: Block) -> str:
        shape = g.node("Shape", h)
        rows = g.node("Reshape", h, g.ints(-1, HIDDEN))
        return g.node("Reshape", g.ffn(rows, b), shape)

    g = Graph()
    model = g.model(g.block(g.block("x", ffn=ffn), ffn=ffn))
    assert lengths(find(model)) == [2], reasons(find(model))
    fused = fuse(model)
    assert sum(node.op_type == "ReduceMean" for node in fused.graph.node) == 1
    np.testing.assert_allclose(run(fused, example())[0], g.parallel(example()), rtol=1e-5, atol=1e-5)
