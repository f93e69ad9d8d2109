"""Blocks with quantised weights: exact stacking, what speaks against it, quantising again.

MatMulNBits(h, [G1; G2]) = [MatMulNBits(h, G1), MatMulNBits(h, G2)]              by outputs, always
MatMulNBits([a1, a2], [D1 D2]) = MatMulNBits(a1, D1) + MatMulNBits(a2, D2)       where blocks fit
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fxfuse.passes.chains import find_chains
from fxfuse.passes.onnx.rewrite import insert
from fxfuse.passes.onnx.splice import splice
from fxfuse.passes.onnx.stacked import rewrite_quantised
from fxfuse.passes.onnx.view import OnnxView
from fxfuse.passes.quantised.formulas import pack, quantise, unpack
from fxfuse.passes.quantised.groups import QuantisedGroup, stack
from fxfuse.passes.records import Found
from fxfuse.sessions import session
from tests.quantised_graphs import (
    HIDDEN,
    Array,
    Block,
    Graph,
    build,
    drawn,
    dynamic,
    nbits,
    plain,
    stored,
    then,
)

INT4, UINT4, UINT8 = TensorProto.INT4, TensorProto.UINT4, TensorProto.UINT8


def view_of(model: onnx.ModelProto) -> OnnxView:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return OnnxView(inferred, numpy_helper.to_array)


def find(model: onnx.ModelProto, *, requantize: bool = False) -> Found:
    return find_chains(view_of(model), requantize=requantize)


def lengths(found: Found) -> list[int]:
    return [len(chain.blocks) for chain in found.chains]


def reason(found: Found) -> str:
    """The one reason there is."""
    (only,) = {miss.reason for miss in found.misses}
    return only


def fuse(model: onnx.ModelProto, *, requantize: bool = False) -> tuple[onnx.ModelProto, QuantisedGroup]:
    """The model with its one chain as one wide FFN."""
    view = view_of(model)
    (chain,) = find_chains(view, requantize=requantize).chains
    group = stack(view, chain.blocks)
    writer, _ = rewrite_quantised(view, chain.blocks, group, "fxfuse.0")
    insert(view.graph, [writer])
    return splice(model, view, [writer], ["all"]), group


def run(model: onnx.ModelProto, *names: str) -> list[Array]:
    """The output y, or the values `names`."""
    for name in names:
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    opened = session(model.SerializeToString(), "cpu", options={"log_severity_level": 4})
    return [np.asarray(each) for each in opened.run(list(names) or ["y"], {"x": drawn()})]


def error(value: Array, exact: Array) -> float:
    """|value - exact| / |exact - x|, over what the FFNs add."""
    return float(np.linalg.norm(value - exact) / np.linalg.norm(exact - drawn()))


def blocks_of(widths: Sequence[int], *parts: Any, **more: Any) -> list[Block]:
    return [Block(*parts, width=width, **more) for width in widths]


def gains(count: int) -> list[Array]:
    return [1.0 + 0.3 * np.random.default_rng(seed).standard_normal(HIDDEN) for seed in range(count)]


def storing(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


# Exact stacking: the same products side by side, in ONNX Runtime

EXACT = {
    "4 bits": nbits(),
    "4 bits, accuracy_level 4": nbits(level=4),
    "zero points, an odd number of blocks": nbits(zero="packed"),
    "zero points that are no integers": nbits(zero="float"),
    "all in one row": nbits(zero="packed", flat=True),
    "2 bits": nbits(2, zero="packed"),
    "8 bits": nbits(8, zero="packed", level=4),
    "bias inside": nbits(bias=True),
    "bias beside": then(nbits(level=4), "Add"),
    "int4 in blocks": stored(INT4, block=16),
    "uint4 in blocks, zero points": stored(UINT4, block=16, zero=True),
    "uint4 as [out, in]": stored(UINT4, block=16, zero=True, turned=True),
    "int8 in blocks": stored(block=16, zero=True),
}
APART = {
    "int8 by outputs": (stored(), "each has scales of its own for whole rows"),
    "int8 as [out, in]": (stored(zero=True, turned=True), "each has scales of its own for whole rows"),
    "int8 whole": (stored(along="tensor", zero=True), "each has scales of its own for whole rows"),
    "uint8": (stored(UINT8, zero=True), "each has scales of its own for whole rows"),
    "MatMulInteger": (dynamic(), "MatMulInteger rounds what it reads with one scale for the whole of it"),
    "uint8 MatMulInteger": (
        dynamic(kind=UINT8),
        "MatMulInteger rounds what it reads with one scale for the whole of it",
    ),
    "one scale": (
        dynamic(columns=False),
        "MatMulInteger rounds what it reads with one scale for the whole of it",
    ),
    "MatMulIntegerToFloat": (
        dynamic("MatMulIntegerToFloat"),
        "MatMulIntegerToFloat rounds what it reads with one scale for the whole of it",
    ),
    "DynamicQuantizeMatMul": (
        dynamic("DynamicQuantizeMatMul"),
        "DynamicQuantizeMatMul rounds what it reads with one scale for the whole of it",
    ),
    "a multiplier": (then(nbits(), "Mul", "Add", "Div"), "a multiplier follows them"),
    "blocks of 32": (nbits(block=32, zero="packed"), "block size 32 does not divide 48"),
}
WIDTHS = ([48, 48, 48], [48, 16, 80])


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("name", EXACT)
def test_gate_up_and_down_are_stacked(name: str, widths: list[int]) -> None:
    blocks = blocks_of(widths, EXACT[name], EXACT[name])
    fused, group = fuse(build(blocks))
    assert group.apart is None
    assert len(group.downs) == 1
    assert error(run(fused)[0], run(build(blocks, parallel=True))[0]) < 3e-6


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("name", APART)
def test_down_products_that_cannot_be_one_stand_side_by_side(name: str, widths: list[int]) -> None:
    write, why = APART[name]
    blocks = blocks_of(widths, write, write)
    fused, group = fuse(build(blocks))
    assert group.apart == why
    assert len(group.downs) == 3
    assert error(run(fused)[0], run(build(blocks, parallel=True))[0]) < 3e-6


def test_integers_are_the_same_bit_for_bit() -> None:
    # MatMulInteger(h, [G1 G2]) = [MatMulInteger(h, G1), MatMulInteger(h, G2)]
    blocks = blocks_of([48, 16, 80], dynamic(), dynamic())
    names = [f"layers.{index}.mlp.gate_proj.integers" for index in range(3)]
    apart = run(build(blocks, parallel=True), *names)
    (wide,) = run(fuse(build(blocks))[0], "fxfuse.0/gate_integers")
    assert wide.dtype == np.int32
    np.testing.assert_array_equal(wide, np.concatenate(apart, -1))


def test_stored_bytes_are_only_moved() -> None:
    # [D1 D2] of 4 bits in blocks of 16: bytes side by side; zero points of 3, 1 and 5 blocks packed anew
    model = build(blocks_of([48, 16, 80], nbits(zero="packed"), nbits(zero="packed")))
    before, (fused, _) = storing(model), fuse(model)
    after = storing(fused)
    for role, axis in (("gate", 0), ("down", 1)):
        for part, name in (("q", f"fxfuse.0/{role}"), ("scale", f"fxfuse.0/{role}_scale")):
            parts = [
                numpy_helper.to_array(before[f"layers.{index}.mlp.{role}_proj.{part}"]) for index in range(3)
            ]
            np.testing.assert_array_equal(numpy_helper.to_array(after[name]), np.concatenate(parts, axis))
    zeros = [numpy_helper.to_array(before[f"layers.{index}.mlp.down_proj.zero"]) for index in range(3)]
    nibbles = [np.stack([each & 15, each >> 4], -1).reshape(HIDDEN, -1) for each in zeros]
    whole = np.concatenate([nibbles[0][:, :3], nibbles[1][:, :1], nibbles[2][:, :5]], 1)
    packed = numpy_helper.to_array(after["fxfuse.0/down_zero"])
    np.testing.assert_array_equal(np.stack([packed & 15, packed >> 4], -1).reshape(HIDDEN, -1)[:, :9], whole)


def test_no_zero_points_beside_zero_points() -> None:
    # absent zero points stand for 8
    blocks = [Block(nbits(), nbits()), Block(nbits(zero="packed"), nbits(zero="packed"))]
    fused, _ = fuse(build(blocks))
    assert error(run(fused)[0], run(build(blocks, parallel=True))[0]) < 3e-6


@pytest.mark.parametrize(
    "first, down", [(nbits(), plain), (plain, nbits()), (dynamic(), nbits(8)), (plain, dynamic())]
)
def test_products_of_different_kinds_in_one_block(first: Any, down: Any) -> None:
    blocks = blocks_of([48, 16, 80], first, down)
    fused, _ = fuse(build(blocks))
    assert error(run(fused)[0], run(build(blocks, parallel=True))[0]) < 3e-6


def test_float_gate_and_up_take_their_gains() -> None:
    blocks = [Block(plain, nbits(), gain=gain) for gain in gains(3)]
    fused, group = fuse(build(blocks))
    assert group.folded
    assert group.error is None
    assert error(run(fused)[0], run(build(blocks, parallel=True))[0]) < 3e-6


def test_down_weights_that_are_stored_differently_stand_side_by_side() -> None:
    blocks = [Block(nbits(), nbits(8)), Block(nbits(), nbits(4)), Block(nbits(), plain)]
    fused, group = fuse(build(blocks))
    assert group.apart == (
        "they are stored differently (MatMulNBits of uint4 in blocks of 16 and MatMulNBits of uint8 in "
        "blocks of 16 and not quantised)"
    )
    assert error(run(fused)[0], run(build(blocks, parallel=True))[0]) < 3e-6


def test_equal_gains_stay_in_the_norm() -> None:
    (gain,) = gains(1)
    blocks = blocks_of([48, 16], nbits(), nbits(), gain=gain, shift=0.1 * gain)
    fused, group = fuse(build(blocks))
    assert not group.folded
    assert error(run(fused)[0], run(build(blocks, parallel=True))[0]) < 3e-6


def test_what_reads_scales_does_not_share_a_weight() -> None:
    # Exporters store equal zero points once; they are copied, so that others may read them too.
    model = build(blocks_of([48, 48], stored(block=16, zero=True), nbits()))
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            node.input[2] = "layers.0.mlp.gate_proj.zero"
    assert lengths(find(model)) == [2]


@settings(max_examples=25)
@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    bits=st.sampled_from([2, 4, 8]),
    zero=st.sampled_from([None, "packed", "float"]),
    level=st.sampled_from([0, 4]),
    flat=st.booleans(),
    bias=st.booleans(),
)
def test_any_chain_of_matmulnbits(widths, bits, zero, level, flat, bias) -> None:
    level = 0 if zero == "float" else level
    write = nbits(bits, 16, level, zero=zero, flat=flat, bias=bias)
    blocks = blocks_of([16 * width for width in widths], write, write)
    fused, group = fuse(build(blocks))
    assert group.apart is None
    assert error(run(fused)[0], run(build(blocks, parallel=True))[0]) < 1e-5


# What cannot be stacked


@pytest.mark.parametrize(
    "write, what",
    [
        (nbits(g_idx=True), "MatMulNBits of uint4 in blocks of 16) orders its inputs by a g_idx of its own"),
        (stored(along="input"), "DequantizeLinear of int8) has its scales along axis 0, that of its inputs"),
        (stored(TensorProto.INT32), "DequantizeLinear of int32) is stored as int32, which is not stacked"),
        (
            stored(gemm=True),
            "DequantizeLinear of int8) is read by a Gemm, which ONNX Runtime rounds otherwise than the "
            "MatMul that would be written",
        ),
    ],
)
def test_a_weight_that_is_never_stacked(write: Any, what: str) -> None:
    found = find(build(blocks_of([48, 48], write, plain)))
    assert lengths(found) == []
    assert reason(found) == f"its gate weight ({what}"


def test_blocks_along_the_outputs() -> None:
    model = build(blocks_of([48, 48], stored(block=16), plain))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "DequantizeLinear" and attribute.name == "axis":
                attribute.i = 1
    assert reason(find(model)) == (
        "its gate weight (DequantizeLinear of int8 in blocks of 16) has its blocks along axis 1, that of its "
        "outputs"
    )


def test_weights_that_are_stored_differently() -> None:
    found = find(build([Block(nbits(), plain), Block(nbits(level=4), plain)]))
    assert lengths(found) == []
    assert reason(found) == (
        "the gate weights are stored differently from layers.0.mlp: MatMulNBits of uint4 in blocks of 16 and "
        "MatMulNBits of uint4 in blocks of 16, accuracy_level 4"
    )
    found = find(build([Block(nbits(), plain, up=plain), Block(nbits(), plain, up=nbits())]))
    assert reason(found).endswith("layers.0.mlp: not quantised and MatMulNBits of uint4 in blocks of 16")


def test_constants_that_differ_in_kind() -> None:
    found = find(build([Block(then(nbits(), "Add"), plain), Block(nbits(), plain)]))
    assert reason(found) == "the constants after gate differ in kind from layers.0.mlp: add and none"


def test_gains_that_differ() -> None:
    blocks = [Block(nbits(), nbits(), gain=gain) for gain in (np.ones(HIDDEN), np.full(HIDDEN, 1.25))]
    assert lengths(find(build(blocks))) == []
    assert reason(find(build(blocks))) == (
        "the gains of the norms differ from layers.0.mlp by up to 0.25, and quantised weights take no gain: "
        "allow quantising again (--requantize, requantize=True), or fuse the float model"
    )
    assert lengths(find(build(blocks), requantize=True)) == [2]


def calibrated(g: Graph, name: str, x: str, columns: int, rows: int) -> str:
    """A product whose operands are quantised by stored scales."""
    scale = g.store(f"{name}.x_scale", 0.0312)
    zero = g.store(f"{name}.x_zero", 0, TensorProto.INT8)
    q = g.node("QuantizeLinear", [x, scale, zero], f"{name}.quantised")[0]
    back = g.node("DequantizeLinear", [q, scale, zero], f"{name}.read")[0]
    return stored()(g, name, back, columns, rows)


def qlinear(g: Graph, name: str, x: str, columns: int, rows: int) -> str:
    """The same as one operator of integers."""
    scale = g.store(f"{name}.x_scale", 0.0312)
    zero = g.store(f"{name}.x_zero", 0, TensorProto.INT8)
    q = g.node("QuantizeLinear", [x, scale, zero], f"{name}.quantised")[0]
    weight = g.store(f"{name}.q", g.random.integers(-128, 128, (columns, rows)), TensorProto.INT8)
    own = g.store(f"{name}.scale", 0.001)
    inputs = [q, scale, zero, weight, own, zero, scale, zero]
    y = g.node("QLinearMatMul", inputs, f"{name}.integers")[0]
    return g.node("DequantizeLinear", [y, scale, zero], name)[0]


@pytest.mark.parametrize("first, down", [(calibrated, calibrated), (plain, calibrated), (qlinear, qlinear)])
def test_activations_with_calibrated_scales(first: Any, down: Any) -> None:
    found = find(build(blocks_of([48, 48], first, down)))
    assert lengths(found) == []
    assert [miss.where for miss in found.misses] == ["layers.0.mlp", "layers.1.mlp"]
    for miss in found.misses:
        assert miss.reason.startswith("its activations are quantised by calibrated scales of its own (")
        assert miss.reason.endswith(
            ", scale 0.0312), and blocks that read one input need one: fuse the float model, then quantise it"
        )


def test_a_product_of_integers_without_its_scales_is_none() -> None:
    model = build(blocks_of([48, 48], dynamic(), dynamic()))
    for node in model.graph.node:
        if node.op_type == "Mul" and node.output[0].endswith(".scales"):
            node.input[0] = "x"
    assert find(model).chains == ()


# Quantising again

AGAIN = {
    "4 bits, symmetric": (nbits(), 0.2),
    "4 bits, zero points": (nbits(zero="packed"), 0.2),
    "4 bits, zero points that are no integers": (nbits(zero="float"), 0.2),
    "8 bits": (nbits(8, zero="packed"), 0.01),
    "int4 in blocks": (stored(INT4, block=16), 0.2),
    "uint4 in blocks": (stored(UINT4, block=16, zero=True), 0.2),
    "int8 by outputs": (stored(), 0.01),
    "int8 dynamic": (dynamic(), 0.01),
    "uint8 dynamic": (dynamic(kind=UINT8), 0.02),
}


@pytest.mark.parametrize("name", AGAIN)
def test_gains_are_folded_and_the_weights_quantised_again(name: str) -> None:
    # W' near W diag(g), of the same form; |W' - W diag(g)| / |W diag(g)| is told
    write, most = AGAIN[name]
    blocks = [Block(write, nbits(), gain=gain, shift=0.1 * gain) for gain in gains(3)]
    fused, group = fuse(build(blocks), requantize=True)
    assert group.error is not None
    assert 0.0 < group.error < most
    view = view_of(build(blocks))
    (chain,) = find_chains(view, requantize=True).chains
    noise = power = 0.0
    for role in ("gate", "up"):
        rows = []
        for block, gain in zip(chain.blocks, gains(3), strict=True):
            weight = view_weight(view, getattr(block.ffn, role))
            rows.append(weight * gain.astype(np.float32).astype(np.float64))
        exact, wide = np.concatenate(rows), getattr(group, role)
        noise += float(((wide.storage.dequantised().numpy() - exact) ** 2).sum())
        power += float((exact**2).sum())
    assert group.error == pytest.approx((noise / power) ** 0.5, rel=1e-6)
    difference = error(run(fused)[0], run(build(blocks, parallel=True))[0])
    assert difference < 3 * group.error + 0.03  # the last for activations that are rounded to 8 bits


def test_zero_points_in_one_block_alone() -> None:
    writers = (nbits(), nbits(zero="packed"))
    blocks = [Block(write, nbits(), gain=gain) for write, gain in zip(writers, gains(2), strict=True)]
    fused, group = fuse(build(blocks), requantize=True)
    assert group.error is not None
    assert group.error < 0.2
    assert error(run(fused)[0], run(build(blocks, parallel=True))[0]) < 3 * group.error


def view_weight(view: OnnxView, linear: Any) -> Array:
    """[out, in] by the formula of the operator's specification, from the view's own stored tensors."""
    from fxfuse.passes.elementwise import constant

    weight = constant(view, linear.weight, None).double().numpy()
    return weight.T if linear.transposed else weight


def test_weights_of_equal_gains_are_not_quantised_again() -> None:
    blocks = blocks_of([48, 16], nbits(), nbits(), gain=gains(1)[0])
    _, group = fuse(build(blocks), requantize=True)
    assert group.error is None


# The formulas


@given(
    bits=st.sampled_from([2, 4, 8]), rows=st.integers(1, 3), count=st.integers(1, 9), seed=st.integers(0, 99)
)
def test_packing(bits: int, rows: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 1 << bits, (rows, count), generator=generator, dtype=torch.uint8)
    packed = pack(values, bits)
    assert packed.shape == (rows, -(-count * bits // 8))
    assert torch.equal(unpack(packed, bits)[:, :count], values)
    if bits == 4 and count > 1:
        assert int(packed[0, 0]) == int(values[0, 0]) + 16 * int(values[0, 1])


@given(
    kind=st.sampled_from([(0, 15, 8), (-8, 7, 0), (0, 15, None), (-127, 127, 0), (0, 255, None), (0, 3, 2)]),
    columns=st.integers(1, 40),
    block=st.sampled_from([8, 16]),
    seed=st.integers(0, 99),
)
def test_rounding_is_to_the_nearest(kind: Any, columns: int, block: int, seed: int) -> None:
    low, high, middle = kind
    weight = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, scale, zero = quantise(weight, block, low, high, middle, torch.float64)
    assert q.shape[1] % block == 0
    assert int(q.min()) >= low
    assert int(q.max()) <= high
    centre = zero if zero is not None else torch.full_like(scale, float(middle))
    spread = scale.repeat_interleave(block, 1)[:, :columns]
    value = (q[:, :columns] - centre.repeat_interleave(block, 1)[:, :columns]) * spread
    # An end of the range may be a step short of the other.
    assert bool(((value - weight).abs() <= 1.0001 * spread.abs()).all())
