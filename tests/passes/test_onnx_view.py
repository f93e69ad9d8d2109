"""ONNX graphs as views: every operator in canonical form, and every way to write a block in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from fxfuse.passes.onnx.names import scope_of
from fxfuse.passes.onnx.ops import torch_dtype_name
from fxfuse.passes.onnx.view import to_torch
from tests.passes.onnx_graphs import HIDDEN, Block, Graph, example, find, fuse, lengths, reasons, run, view_of

Write = Callable[[Graph], str]


def last(write: Write, opset: int = 20):
    graph = Graph(opset=opset)
    value = write(graph)
    return view_of(graph.model(value, shaped=False)), value


@pytest.mark.parametrize(
    ("write", "kind", "attrs"),
    [
        (lambda g: g.node("Add", "x", g.weight(1.0)), "add", {}),
        (lambda g: g.node("Sub", "x", g.weight(1.0)), "sub", {}),
        (lambda g: g.node("Max", "x", "x"), "maximum", {}),
        (lambda g: g.node("Max", "x", "x", "x"), "Max", {}),
        (lambda g: g.node("Clip", "x", g.weight(0.0)), "maximum", {}),
        (lambda g: g.node("Clip", "x", "", g.weight(6.0)), "minimum", {}),
        (lambda g: g.node("Clip", "x"), "Clip", {}),
        (lambda g: g.node("Erf", "x"), "erf", {}),
        (lambda g: g.node("Mish", "x"), "mish", {}),
        (lambda g: g.node("Gelu", "x", approximate="tanh"), "gelu", {"approximate": "tanh"}),
        (lambda g: g.node("Gelu", "x"), "gelu", {"approximate": "none"}),
        (lambda g: g.node("FastGelu", "x", domain="com.microsoft"), "gelu", {"approximate": "tanh"}),
        (lambda g: g.node("QuickGelu", "x", domain="com.microsoft"), "quick_gelu", {"alpha": 1.702}),
        (lambda g: g.node("QuickGelu", "x", domain="com.microsoft", alpha=1.0), "quick_gelu", {"alpha": 1.0}),
        (lambda g: g.node("ScaledSiLU", "x", domain="com.microsoft", alpha=2.0), "silu", {}),
        (lambda g: g.node("Softsign", "x"), "Softsign", {}),
        (lambda g: g.node("Sum", "x", g.weight(1.0)), "add", {}),
        (lambda g: g.node("Sum", "x", g.weight(1.0), "x"), "add", {}),
        (lambda g: g.node("Sum", "x"), "pass", {}),
        (lambda g: g.node("Cast", "x", to=TensorProto.FLOAT16), "cast", {"dtype": "float16"}),
        (lambda g: g.node("Cast", "x", to=TensorProto.BFLOAT16), "cast", {"dtype": "bfloat16"}),
        (lambda g: g.node("Cast", "x", to=TensorProto.DOUBLE), "cast", {"dtype": "float64"}),
        (lambda g: g.node("Cast", "x", to=TensorProto.INT64), "Cast", {}),
        (lambda g: g.node("Identity", "x"), "pass", {}),
        (lambda g: g.node("Dropout", "x"), "dropout", {"active": False, "p": 0.5}),
        (
            lambda g: g.node("Dropout", "x", g.weight(0.1)),
            "dropout",
            {"active": False, "p": pytest.approx(0.1)},
        ),
        (
            lambda g: g.node("Dropout", "x", g.weight(0.1), g.weight(True, dtype=bool)),
            "dropout",
            {"active": True, "p": pytest.approx(0.1)},
        ),
        (
            lambda g: g.node("Dropout", "x", g.weight(0.1), g.weight(False, dtype=bool)),
            "dropout",
            {"active": False, "p": pytest.approx(0.1)},
        ),
        (lambda g: g.node("ReduceMean", "x", g.ints(-1)), "mean", {}),
        (lambda g: g.node("ReduceMean", "x", g.ints(2)), "mean", {}),
        (lambda g: g.node("ReduceMean", "x", g.ints(1)), "ReduceMean", {"axes": [1], "kept": True}),
        (
            lambda g: g.node("ReduceMean", "x", g.ints(-1), keepdims=0),
            "ReduceMean",
            {"axes": [-1], "kept": False},
        ),
        (lambda g: g.node("ReduceMean", "x", g.ints(1, 2)), "ReduceMean", {"axes": [1, 2], "kept": True}),
        (lambda g: g.node("ReduceMean", "x"), "ReduceMean", {"axes": None, "kept": True}),
        (
            lambda g: g.node("SimplifiedLayerNormalization", "x", g.weight(np.ones(8)), epsilon=1e-3, axis=2),
            "rms_norm",
            {"eps": pytest.approx(1e-3)},
        ),
        (lambda g: g.node("LayerNormalization", "x", g.weight(np.ones(8))), "layer_norm", {"eps": 1e-5}),
        (
            lambda g: g.node("LayerNormalization", "x", g.weight(np.ones(8)), axis=1),
            "LayerNormalization",
            {"axes": "1 and those after it"},
        ),
        (lambda g: g.node("MatMul", "x", g.weight(np.ones((8, 3)))), "linear", {"transposed": True}),
        (lambda g: g.node("MatMul", "x", g.weight(np.ones((2, 8, 3)))), "MatMul", {}),
        (
            lambda g: g.node(
                "FusedMatMul", "x", g.weight(np.ones((3, 8))), domain="com.microsoft", transB=1, alpha=0.5
            ),
            "linear",
            {"transposed": False, "alpha": 0.5},
        ),
        (
            lambda g: g.node("FusedMatMul", "x", g.weight(np.ones((8, 8))), domain="com.microsoft", transA=1),
            "FusedMatMul",
            {},
        ),
        (
            lambda g: g.node("Gemm", flat(g, "x"), g.weight(np.ones((3, 8))), g.weight(np.ones(3)), transB=1),
            "linear",
            {"transposed": False, "alpha": 1.0, "operator": "Gemm"},
        ),
        (lambda g: g.node("Gemm", flat(g, "x"), g.weight(np.ones((8, 8))), transA=1), "Gemm", {}),
        (lambda g: g.node("Transpose", g.weight(np.ones((3, 8))), perm=[1, 0]), "transpose", {}),
        (lambda g: g.node("Transpose", "x", perm=[0, 2, 1]), "Transpose", {}),
        (lambda g: flat(g, "x"), "pass", {}),
        (lambda g: g.node("Unsqueeze", "x", g.ints(0)), "pass", {}),
        (lambda g: g.node("Reshape", "x", g.ints(-1)), "Reshape", {}),
        (
            lambda g: g.node("Split", "x", outputs=2, num_outputs=2, axis=-1)[1],
            "part",
            {"start": 4, "stop": 8},
        ),
        (lambda g: g.node("Split", "x", g.ints(1, 7), outputs=2, axis=2)[1], "part", {"start": 1, "stop": 8}),
        (
            lambda g: g.node("Split", "x", outputs=3, num_outputs=3, axis=-1)[2],
            "part",
            {"start": 6, "stop": 8},
        ),
        (lambda g: g.node("Split", "x", outputs=2, num_outputs=2)[1], "Split", {}),
        (
            lambda g: g.node("Slice", "x", g.ints(2), g.ints(5), g.ints(-1)),
            "part",
            {"start": 2, "stop": 5},
        ),
        (
            lambda g: g.node("Slice", "x", g.ints(-3), g.ints(2**63 - 1), g.ints(2), g.ints(1)),
            "part",
            {"start": 5, "stop": 8},
        ),
        (lambda g: g.node("Slice", "x", g.ints(0), g.ints(8), g.ints(-1), g.ints(2)), "Slice", {}),
        (lambda g: g.node("Slice", "x", g.ints(0), g.ints(2), g.ints(1)), "Slice", {}),
        (lambda g: g.node("Shape", "x"), "shape", {}),
        (lambda g: g.node("TopK", "x", g.ints(2), outputs=2)[0], "route", {}),
        (lambda g: g.node("CumSum", "x", g.weight(2, dtype=np.int64)), "CumSum", {}),
    ],
)
def test_operators(write: Write, kind: str, attrs: dict[str, Any]) -> None:
    view, value = last(write)
    op = view.op(value)
    assert (op.kind, dict(op.attrs)) == (kind, attrs)


def flat(g: Graph, x: str) -> str:
    return g.node("Reshape", x, g.ints(-1, HIDDEN))


@pytest.mark.parametrize(
    ("opset", "write", "kind"),
    [
        (12, lambda g: g.node("ReduceMean", "x", axes=[-1], keepdims=1), "mean"),
        (12, lambda g: g.node("ReduceMean", "x", axes=[1], keepdims=1), "ReduceMean"),
        (12, lambda g: g.node("Split", "x", outputs=2, axis=2, split=[3, 5])[1], "part"),
        (12, lambda g: g.node("Unsqueeze", "x", axes=[0]), "pass"),
        (9, lambda g: g.node("Slice", "x", starts=[0], ends=[4], axes=[2]), "part"),
        (9, lambda g: g.node("Dropout", "x", ratio=0.3), "dropout"),
        (23, lambda g: g.node("RMSNormalization", "x", g.weight(np.ones(8)), epsilon=1e-3), "rms_norm"),
        (24, lambda g: g.node("Swish", "x"), "quick_gelu"),
    ],
)
def test_operators_of_other_opsets(opset: int, write: Write, kind: str) -> None:
    view, value = last(write, opset)
    assert view.op(value).kind == kind


def test_a_training_mode_that_is_computed_counts_as_active() -> None:
    def write(g: Graph) -> str:
        mode = g.node("Not", g.node("Not", g.weight(False, dtype=bool)))
        return g.node("Dropout", "x", g.weight(0.1), mode)

    view, value = last(write)
    assert view.op(value).attrs["active"] is True


# Every way to write a norm, an FFN and an add


def constant(g: Graph, value: Any) -> str:
    return g.node("Constant", value=numpy_helper.from_array(np.asarray(value, g.dtype)))


def mean_square(g: Graph, x: str) -> str:
    return g.node("ReduceMean", g.node("Mul", x, x), g.ints(2), keepdims=1)


def rms_divided(g: Graph, x: str, b: Block) -> str:
    root = g.node("Sqrt", g.node("Add", constant(g, b.eps), mean_square(g, x)))
    return g.node("Mul", g.weight(b.gain), g.node("Div", x, root))


def rms_one_over(g: Graph, x: str, b: Block) -> str:
    root = g.node("Sqrt", g.node("Add", mean_square(g, x), constant(g, b.eps)))
    inverse = g.node("Div", g.node("Constant", value_float=1.0), root)
    return g.node("Mul", g.node("Mul", inverse, x), g.weight(b.gain))


def rms_by_power(g: Graph, x: str, b: Block) -> str:
    inverse = g.node("Pow", g.node("Add", mean_square(g, x), constant(g, b.eps)), constant(g, -0.5))
    return g.node("Mul", g.node("Mul", x, inverse), g.weight(b.gain))


def rms_twice_cast(g: Graph, x: str, b: Block) -> str:
    """Casts even in float32, one for either reader"""
    one, other = (g.node("Cast", x, to=TensorProto.FLOAT) for _ in range(2))
    square = g.node("Pow", other, g.weight(2, dtype=np.int64))
    root = g.node("Sqrt", g.node("Add", g.node("ReduceMean", square, g.ints(-1)), constant(g, b.eps)))
    unit = g.node("Cast", g.node("Div", one, root), to=TensorProto.FLOAT)
    return g.node("Mul", g.weight(b.gain), unit)


def rms_gain_plus_one(g: Graph, x: str, b: Block) -> str:
    gain = g.node("Add", g.weight(b.gain - 1.0), constant(g, 1.0))
    return g.node("Mul", rms_without_gain(g, x, b), gain)


def rms_without_gain(g: Graph, x: str, b: Block) -> str:
    return g.node("Div", x, g.node("Sqrt", g.node("Add", mean_square(g, x), constant(g, b.eps))))


def rms_operator(g: Graph, x: str, b: Block) -> str:
    return g.node("SimplifiedLayerNormalization", x, g.weight(b.gain), epsilon=b.eps, axis=-1, stash_type=1)


NORMS = [rms_divided, rms_one_over, rms_by_power, rms_twice_cast, rms_gain_plus_one, rms_operator]


def layer_spelled_out(g: Graph, x: str, b: Block) -> str:
    z = g.node("Sub", x, g.node("ReduceMean", x, g.ints(-1)))
    root = g.node("Sqrt", g.node("Add", g.node("ReduceMean", g.node("Pow", z, constant(g, 2.0)), g.ints(-1)),
                                 constant(g, b.eps)))  # fmt: skip
    return g.node("Add", g.node("Mul", g.node("Div", z, root), g.weight(b.gain)), g.weight(b.shift))


def layer_two_centres(g: Graph, x: str, b: Block) -> str:
    first, second = (g.node("Sub", x, g.node("ReduceMean", x, g.ints(-1))) for _ in range(2))
    square = g.node("Mul", second, second)
    root = g.node("Sqrt", g.node("Add", g.node("ReduceMean", square, g.ints(-1)), constant(g, b.eps)))
    return g.node("Add", g.weight(b.shift), g.node("Mul", g.node("Div", first, root), g.weight(b.gain)))


def layer_operator(g: Graph, x: str, b: Block) -> str:
    return g.node("LayerNormalization", x, g.weight(b.gain), g.weight(b.shift), epsilon=b.eps)


def ffn_gemm(g: Graph, h: str, b: Block) -> str:
    """Gemm between Reshapes, as ONNX Runtime leaves a MatMul with a bias"""
    rows = flat(g, h)
    gate = g.node("Gemm", rows, g.weight(b.gate.T.copy()), transB=1)
    up = g.node("Gemm", rows, g.weight(b.up))
    inner = g.node("Mul", g.silu(gate), up)
    down = g.node("Gemm", inner, g.weight(b.down / 2.0), alpha=2.0)
    shape = g.node("Concat", g.node("Shape", "x", end=2), g.ints(HIDDEN), axis=0)
    return g.node("Reshape", down, shape)


def ffn_fused_matmul(g: Graph, h: str, b: Block) -> str:
    gate = g.node("FusedMatMul", h, g.weight(b.gate / 2.0), domain="com.microsoft", alpha=2.0)
    up = g.node("FusedMatMul", h, g.weight(b.up.T.copy()), domain="com.microsoft", transB=1)
    quick = g.node("QuickGelu", gate, domain="com.microsoft", alpha=1.0)
    return g.node("MatMul", g.node("Mul", quick, up), g.weight(b.down))


def ffn_transposed(g: Graph, h: str, b: Block) -> str:
    gate, up, down = (
        g.node("Transpose", g.weight(each.T.copy()), perm=[1, 0]) for each in (b.gate, b.up, b.down)
    )
    inner = g.node("Mul", g.node("MatMul", h, up), g.silu(g.node("MatMul", h, gate)))
    return g.node("Dropout", g.node("MatMul", inner, down))


def ffn_behind_identities(g: Graph, h: str, b: Block) -> str:
    """Weights in Constant nodes, cast, transposed and handed through"""
    weights = []
    for array in (b.gate, b.up, b.down):
        array[...] = array.astype(np.float16)
        stored = g.node("Constant", value=numpy_helper.from_array(array.T.astype(np.float16).copy()))
        turned = g.node("Transpose", g.node("Cast", stored, to=TensorProto.FLOAT), perm=[1, 0])
        weights.append(g.node("Identity", turned))
    inner = g.node("Mul", g.silu(g.node("MatMul", h, weights[0])), g.node("MatMul", h, weights[1]))
    return g.node("MatMul", inner, weights[2])


def ffn_half_weights(g: Graph, h: str, b: Block) -> str:
    """Weights stored in float16 behind a Cast"""
    weights = []
    for array in (b.gate, b.up, b.down):
        array[...] = array.astype(np.float16)
        weights.append(g.node("Cast", g.weight(array, dtype=np.float16), to=TensorProto.FLOAT))
    inner = g.node("Mul", g.silu(g.node("MatMul", h, weights[0])), g.node("MatMul", h, weights[1]))
    return g.node("MatMul", inner, weights[2])


def ffn_packed_split(g: Graph, h: str, b: Block) -> str:
    both = g.node("MatMul", h, g.weight(np.concatenate([b.gate, b.up], 1)))
    gate, up = g.node("Split", both, outputs=2, num_outputs=2, axis=-1)
    return g.node("MatMul", g.node("Mul", g.silu(gate), up), g.weight(b.down))


def ffn_packed_up_first(g: Graph, h: str, b: Block) -> str:
    width = b.gate.shape[1]
    both = g.node("MatMul", h, g.weight(np.concatenate([b.up, b.gate], 1)))
    up, gate = g.node("Split", both, g.ints(width, width), outputs=2, axis=-1)
    return g.node("MatMul", g.node("Mul", g.silu(gate), up), g.weight(b.down))


def ffn_packed_slices(g: Graph, h: str, b: Block) -> str:
    """Slice(y, 0, (Gather(Shape(y), -1) + 1) / 2), as the older exporter writes chunk"""
    both = g.node("MatMul", h, g.weight(np.concatenate([b.gate, b.up], 1)))
    size = g.node("Gather", g.node("Shape", both), g.weight(-1, dtype=np.int64))
    half = g.node("Div", g.node("Add", size, g.weight(1, dtype=np.int64)), g.weight(2, dtype=np.int64))
    half = g.node("Unsqueeze", half, g.ints(0))
    whole = g.node("Mul", half, g.ints(2))
    gate = g.node("Slice", both, g.ints(0), half, g.ints(-1))
    up = g.node("Slice", both, half, whole, g.ints(-1))
    return g.node("MatMul", g.node("Mul", g.silu(gate), up), g.weight(b.down))


FFNS = [
    ffn_gemm, ffn_fused_matmul, ffn_transposed, ffn_half_weights, ffn_packed_split, ffn_packed_up_first,
    ffn_packed_slices, ffn_behind_identities,
]  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
def test_rms_norms(norm: Callable[..., str]) -> None:
    check(norm=norm)


@pytest.mark.parametrize("norm", [layer_spelled_out, layer_two_centres, layer_operator])
def test_layer_norms(norm: Callable[..., str]) -> None:
    check(norm=norm, kind="layer", shift=True)


@pytest.mark.parametrize("ffn", FFNS)
@pytest.mark.parametrize("norm", [None, rms_operator])
def test_ffns(ffn: Callable[..., str], norm: Callable[..., str] | None) -> None:
    check(norm=norm, ffn=ffn)


def check(norm: Any = None, ffn: Any = None, shift: bool = False, **meaning: Any) -> None:
    """Equals x + the sum of two blocks, each part written in the way given, or as torch.onnx does."""
    g, x = Graph(), "x"
    for width in (12, 5):
        block = g.new_block(width, eps=1e-3, **meaning)
        block.shift = g.draw(HIDDEN) if shift else None
        x = g.block(x, block, norm=norm, ffn=ffn)
    model = g.model(x)
    found = find(model)
    assert lengths(found) == [2], reasons(found)
    (fused,) = run(fuse(model), example())
    np.testing.assert_allclose(fused, g.parallel(example()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("act", "write"),
    [
        (F.relu, lambda g, y: g.node("Relu", y)),
        (F.relu, lambda g, y: g.node("Max", y, g.weight(0.0))),
        (F.relu, lambda g, y: g.node("Clip", y, g.weight(0.0))),
        (F.gelu, lambda g, y: g.node("Gelu", y)),
        (
            F.gelu,
            lambda g, y: g.node(
                "Mul",
                g.node(
                    "Mul", y, g.node("Add", g.node("Erf", g.node("Div", y, g.weight(2**0.5))), g.weight(1.0))
                ),
                g.weight(0.5),
            ),
        ),
        (lambda y: F.gelu(y, approximate="tanh"), lambda g, y: g.node("FastGelu", y, domain="com.microsoft")),
        (lambda y: y * torch.sigmoid(1.702 * y), lambda g, y: g.node("QuickGelu", y, domain="com.microsoft")),
        (lambda y: F.relu(y).square(), lambda g, y: g.node("Pow", g.node("Relu", y), g.weight(2.0))),
        (torch.tanh, lambda g, y: g.node("Tanh", g.node("Identity", y))),
        (lambda y: F.relu(0.5 * y + 0.25), lambda g, y: g.node("Relu", affine(g, y))),
    ],
)
def test_activations(act: Callable[..., torch.Tensor], write: Callable[..., str]) -> None:
    def ffn(g: Graph, h: str, b: Block) -> str:
        return g.product(write(g, g.product(h, b, "gate")), b, "down")

    g, x = Graph(), "x"
    for width in (12, 5):
        x = g.block(x, g.new_block(width, gated=False, act=act), ffn=ffn)
    (fused,) = run(fuse(g.model(x)), example())
    np.testing.assert_allclose(fused, g.parallel(example()), rtol=1e-5, atol=1e-5)


def affine(g: Graph, y: str) -> str:
    """A scalar of a file may be a trained one: a file does not tell, and equal ones fuse all the same."""
    return g.node("Add", g.node("Mul", y, g.weight(0.5, "alpha")), g.weight(0.25, "beta"))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda g, h, b: g.node("MatMul", g.node("Softsign", h), g.weight(b.down)), None),
        (
            lambda g, h, b: g.product(g.node("Softsign", g.product(h, b, "gate")), b, "down"),
            "between the first product and down_proj stands Softsign (n",
        ),
        (
            lambda g, h, b: g.product(g.node("Softmax", g.product(h, b, "gate")), b, "down"),
            None,
        ),
        (
            lambda g, h, b: g.product(
                g.node("Mul", g.node("Relu", g.product(h, b, "gate")), g.weight(np.ones(12))), b, "down"
            ),
            "the activation has a constant per channel (w",
        ),
        (
            lambda g, h, b: g.node("Dropout", g.ffn(h, b), g.weight(0.1), g.weight(True, dtype=bool)),
            "dropout (p=0.1) is active",
        ),
        (lambda g, h, b: g.node("MatMul", g.ffn(h, b), "x_t"), None),
    ],
)
def test_what_is_no_ffn(write: Callable[..., str], reason: str | None) -> None:
    g = Graph()
    g.weight(np.eye(HIDDEN), "x_t")
    x = g.block(g.block("x", ffn=write), ffn=write)
    found = find(g.model(x))
    assert not found.chains
    assert reason is None or reason in reasons(found)


def test_a_copied_weight_is_two_weights_and_a_shared_one_is_a_reason() -> None:
    g = Graph()
    block = g.new_block()

    def shared(g: Graph, h: str, b: Block) -> str:
        gate = g.node("MatMul", h, g.weight(b.gate, "shared.gate"))
        return g.product(g.node("Mul", g.silu(gate), g.product(h, b, "up")), b, "down")

    copies = g.model(g.block(g.block("x", block), block))
    assert lengths(find(copies)) == [2]
    g = Graph()
    model = g.model(g.block(g.block("x", block, ffn=shared), block, ffn=shared))
    assert "its weight shared.gate is also read by n" in reasons(find(model))


def test_shapes_types_and_constants() -> None:
    g = Graph()
    y = g.node("Relu", "x")
    z = g.node("Mul", y, g.node("Add", g.weight(np.ones(8), "v"), constant(g, 1.0)))
    model = g.model(z, shaped=False)
    view = view_of(model)
    scale = view.op(z).inputs[1]
    assert view.shape(y) == (None, None, HIDDEN)
    assert (view.shape("v"), view.dtype("v"), view.dtype(y)) == ((8,), "float32", "float32")
    assert [view.is_constant(each) for each in ("x", y, "v", scale)] == [False, False, True, True]
    assert not view.is_parameter("v")
    assert (view.is_output(z), view.is_output(y)) == (True, False)
    assert view.readers(y) == [z]
    assert (view.node_name(y), view.node_name("v"), view.op("x"), view.op("v")) == ("n0", "v", None, None)
    assert view.stored("v").tolist() == [1.0] * 8
    assert view.width(z) == 8


def test_widths_without_shape_inference() -> None:
    """com.microsoft operators have no inferred shapes; a product's weight tells"""
    g = Graph()
    y = g.node("MatMul", g.node("QuickGelu", "x", domain="com.microsoft"), g.weight(np.ones((HIDDEN, 6))))
    z = g.node("Relu", g.node("QuickGelu", y, domain="com.microsoft"))
    first, second = g.node("Split", z, outputs=2, num_outputs=2, axis=-1)
    view = view_of(g.model(g.node("Add", first, second), shaped=False))
    assert view.width(z) == 6
    assert dict(view.op(second).attrs) == {"start": 3, "stop": 6}


def test_readers_inside_of_subgraphs_count() -> None:
    g = Graph()
    y = g.node("Relu", "x")
    inner = helper.make_graph(
        [helper.make_node("Neg", [y], ["inner"])], "then", [], [helper.make_empty_tensor_value_info("inner")]
    )
    other = helper.make_graph([], "else", [], [helper.make_empty_tensor_value_info(y)])
    for each in (inner.output[0], other.output[0]):
        each.type.tensor_type.elem_type = TensorProto.FLOAT
    z = g.node("If", g.weight(True, dtype=bool), then_branch=inner, else_branch=other)
    view = view_of(g.model(z))
    assert view.readers(y) == ["inner"]
    assert view.is_output(y)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.int64, bool])
def test_arrays_become_tensors(dtype: Any) -> None:
    array = np.array([[1, 0, 1], [0, 1, 1]]).astype(dtype)
    tensor = to_torch(array)
    assert str(tensor.dtype).removeprefix("torch.") == torch_dtype_name(
        helper.np_dtype_to_tensor_dtype(array.dtype)
    )
    assert tensor.tolist() == array.tolist()
    assert to_torch(np.array(3, dtype)).shape == ()


def test_names_of_element_types() -> None:
    assert torch_dtype_name(TensorProto.UNDEFINED) is None
    assert torch_dtype_name(TensorProto.INT4) == "int4"


@pytest.mark.parametrize(
    ("name", "namespace", "weight", "scope"),
    [
        ("n0", ": Model/layers.0: Layer/layers.0.mlp: Mlp/linear: aten.linear.default", "", "layers.0.mlp"),
        ("n0", "linear: aten.linear.default", "w", ""),
        ("/model/layers.0/mlp/down_proj/MatMul", None, "onnx::MatMul_12", "model.layers.0.mlp.down_proj"),
        ("/MatMul", None, "layers.3.mlp.up_proj.weight", "layers.3.mlp.up_proj"),
        ("n0", None, "model.layers.3.mlp.up_proj.MatMul.weight", "model.layers.3.mlp.up_proj.MatMul"),
        ("n0", None, "FusedBack_layers.3.mlp.up_proj.bias", "layers.3.mlp.up_proj"),
        ("n0", None, "InsertedPrecisionFreeCast_layers.3.norm.weight", "layers.3.norm"),
        ("/model/layers.0/mlp/MatMul/MatMulAddFusion", None, "", "model.layers.0.mlp"),
        ("/model/layers.0/norm/Mul_1/SimplifiedLayerNormFusion/", None, "", "model.layers.0.norm"),
        ("node_MatMul_2/MatMulAddFusion", None, "bert/layer_0/dense/kernel:0", "bert.layer_0.dense"),
        ("n0", None, "val_12", ""),
        ("", None, "layers.3.rotary.table", ""),
    ],
)
def test_scopes(name: str, namespace: str | None, weight: str, scope: str) -> None:
    node = onnx.NodeProto(name=name)
    if namespace is not None:
        node.metadata_props.add(key="namespace", value=namespace)
    assert scope_of(node, weight) == scope
    assert namespace is not None or name.startswith("/model") or scope_of(None, weight) == scope
