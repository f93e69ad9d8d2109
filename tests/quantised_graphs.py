"""Tiny decoders with quantised weights, put together node by node, in sequence or side by side.

    x1 = x0 + FFN1(norm(x0)),  x2 = x1 + FFN2(norm(x1))         build(blocks)
    x2 = x0 + FFN1(norm(x0)) + FFN2(norm(x0))                   build(blocks, parallel=True): the oracle

The integers, scales and zero points are drawn; the same ones either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE = (2, 6, 32)
HIDDEN = SHAPE[-1]
_INT64 = TensorProto.INT64
Array = np.ndarray[Any, Any]


class Graph:
    """Nodes and weights that are being put together."""

    def __init__(self, seed: int = 3) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def store(self, name: str, values: Any, kind: int = TensorProto.FLOAT) -> str:
        """A stored tensor."""
        array = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(kind))
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: Sequence[str], name: str, outputs: int = 1, **attrs: Any) -> list[str]:
        """A node; its outputs are NAME, NAME_1 and so on."""
        names = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        microsoft = op in ("MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm")
        domain = "com.microsoft" if microsoft or op.startswith("QLinearS") else ""
        path = f"/{name}/{op}".replace(".mlp.", "/mlp/")
        self.nodes.append(helper.make_node(op, list(inputs), names, path, domain=domain, **attrs))
        return names

    def scale(self, *shape: int) -> Array:
        """Scales with which a weight is about as large as 0.1."""
        return (0.5 + self.random.random(shape)).astype(np.float32)


Writer = Callable[[Graph, str, str, int, int], str]
"""Writes a product: graph, name, what it reads, inputs, outputs -> the name of its result."""


def nbits(
    bits: int = 4,
    block: int = 16,
    level: int = 0,
    *,
    zero: str | None = None,
    flat: bool = False,
    bias: bool = False,
    g_idx: bool = False,
) -> Writer:
    """MatMulNBits; `zero` is None, "packed" or "float", `flat` stores scales and zero points in one row."""

    def write(g: Graph, name: str, x: str, columns: int, rows: int) -> str:
        count = -(-columns // block)
        packed = g.random.integers(0, 256, (rows, count, block * bits // 8))
        shape = (rows * count,) if flat else (rows, count)
        inputs = [x, g.store(f"{name}.q", packed, TensorProto.UINT8)]
        inputs.append(g.store(f"{name}.scale", g.scale(*shape) * 0.12 / 2 ** (bits - 1)))
        inputs.append(_zeros(g, name, bits, rows, count, zero, flat))
        order = g.store(f"{name}.g_idx", np.arange(columns) // block, TensorProto.INT32) if g_idx else ""
        inputs += [order, g.store(f"{name}.bias", 0.2 * g.random.standard_normal(rows)) if bias else ""]
        while not inputs[-1]:
            inputs.pop()
        attrs = {"K": columns, "N": rows, "bits": bits, "block_size": block}
        attrs |= {"accuracy_level": level} if level else {}
        return g.node("MatMulNBits", inputs, name, **attrs)[0]

    return write


def _zeros(g: Graph, name: str, bits: int, rows: int, count: int, zero: str | None, flat: bool) -> str:
    if zero is None:
        return ""
    if zero == "float":
        values = 2 ** (bits - 1) + g.random.standard_normal((rows, count))
        return g.store(f"{name}.zero", values.reshape(-1) if flat else values)
    packed = g.random.integers(0, 256, (rows, -(-count * bits // 8)))
    return g.store(f"{name}.zero", packed.reshape(-1) if flat else packed, TensorProto.UINT8)


def stored(
    kind: int = TensorProto.INT8,
    along: str = "output",
    block: int = 0,
    *,
    zero: bool = False,
    turned: bool = False,
    gemm: bool = False,
) -> Writer:
    """DequantizeLinear of a stored weight, then MatMul; the weight may be [out, in], or a Gemm read it.

    Scales `along` the "tensor", each "output", each "input", or each `block` of inputs where one is given.
    """
    low, high = {TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255)}.get(kind, (-8, 7))
    low, high = (0, 15) if kind == TensorProto.UINT4 else (low, high)

    def write(g: Graph, name: str, x: str, columns: int, rows: int) -> str:
        axis = {"output": 1, "input": 0}.get("input" if block else along, 1)
        size = {"tensor": (), "output": (rows,), "input": (columns,)}[along]
        shape = (columns // block, rows) if block else size
        q, scale = g.random.integers(low, high + 1, (columns, rows)), g.scale(*shape) * 0.12 / (high + 1)
        zeros = g.random.integers(low // 2, high // 2, shape)
        if turned:
            q, axis, scale, zeros = q.T, 1 - axis, scale.T, np.asarray(zeros).T
        inputs = [g.store(f"{name}.q", q, kind), g.store(f"{name}.scale", scale)]
        inputs += [g.store(f"{name}.zero", zeros, kind)] if zero else []
        attrs = {"axis": axis} | ({"block_size": block} if block else {})
        weight = g.node("DequantizeLinear", inputs, f"{name}.weight", **attrs)[0]
        if gemm:
            flat = g.node("Reshape", [x, g.store(f"{name}.flat", [-1, columns], _INT64)], f"{name}.rows")[0]
            y = g.node("Gemm", [flat, weight], f"{name}.gemm")[0]
            return g.node("Reshape", [y, g.store(f"{name}.shape", [*SHAPE[:2], rows], _INT64)], name)[0]
        weight = g.node("Transpose", [weight], f"{name}.t", perm=[1, 0])[0] if turned else weight
        return g.node("MatMul", [x, weight], name)[0]

    return write


def dynamic(form: str = "MatMulInteger", kind: int = TensorProto.INT8, *, columns: bool = True) -> Writer:
    """Int8 with what it reads quantised on the way, in the three forms; a scale for each column, or one."""

    def write(g: Graph, name: str, x: str, inner: int, rows: int) -> str:
        signed = kind == TensorProto.INT8
        shape = (rows,) if columns else ()
        weight = g.store(f"{name}.q", g.random.integers(0, 256, (inner, rows)) - 128 * signed, kind)
        scale = g.store(f"{name}.scale", g.scale(*shape) * 0.12 / 128)
        zero = g.store(f"{name}.zero", np.zeros(shape) if signed else np.full(shape, 121), kind)
        if form == "DynamicQuantizeMatMul":
            return g.node(form, [x, weight, scale, zero], name)[0]
        q, q_scale, q_zero = g.node("DynamicQuantizeLinear", [x], f"{name}.read", 3)
        if form == "MatMulIntegerToFloat":
            return g.node(form, [q, weight, q_scale, scale, q_zero, zero], name)[0]
        integers = g.node("MatMulInteger", [q, weight, q_zero, zero], f"{name}.integers")[0]
        value = g.node("Cast", [integers], f"{name}.cast", to=TensorProto.FLOAT)[0]
        scales = g.node("Mul", [q_scale, scale], f"{name}.scales")[0]
        return g.node("Mul", [value, scales], name)[0]

    return write


def plain(g: Graph, name: str, x: str, columns: int, rows: int) -> str:
    """A product with a float weight."""
    weight = g.store(f"{name}.weight", 0.1 * g.random.standard_normal((columns, rows)))
    return g.node("MatMul", [x, weight], name)[0]


def then(write: Writer, *steps: str) -> Writer:
    """A product followed by constants for each output: "Add", "Mul", "Div"."""

    def both(g: Graph, name: str, x: str, columns: int, rows: int) -> str:
        y = write(g, f"{name}.product", x, columns, rows)
        for index, op in enumerate(steps):
            values = (1.0 if op != "Add" else 0.0) + 0.2 * g.random.standard_normal(rows)
            y = g.node(op, [y, g.store(f"{name}.{op}{index}", values)], f"{name}.{op}{index}.out")[0]
        return y

    return both


@dataclass
class Block:
    """One FFN block; `gain` is that of the norm, all ones by default."""

    first: Writer
    down: Writer
    up: Writer | None = None
    width: int = 48
    gain: Array = field(default_factory=lambda: np.ones(HIDDEN))
    shift: Array | None = None


def build(
    blocks: Sequence[Block], *, parallel: bool = False, opset: int = 21, taps: Sequence[str] = ()
) -> Any:
    """The model x -> y; `taps` are values that it returns too."""
    g, stream = Graph(), "x"
    for index, block in enumerate(blocks):
        p = f"layers.{index}.mlp"
        read = _norm(g, p, block, "x" if parallel else stream)
        gate = block.first(g, f"{p}.gate_proj", read, HIDDEN, block.width)
        up = (block.up or block.first)(g, f"{p}.up_proj", read, HIDDEN, block.width)
        sigmoid = g.node("Sigmoid", [gate], f"{p}.sigmoid")[0]
        silu = g.node("Mul", [gate, sigmoid], f"{p}.silu")[0]
        inner = g.node("Mul", [silu, up], f"{p}.inner")[0]
        down = block.down(g, f"{p}.down_proj", inner, block.width, HIDDEN)
        stream = g.node("Add", [stream, down], "y" if index == len(blocks) - 1 else f"x{index + 1}")[0]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "y")]
    outputs = [values[1], *(helper.make_empty_tensor_value_info(name) for name in taps)]
    graph = helper.make_graph(g.nodes, "quantised", values[:1], outputs, g.weights)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _norm(g: Graph, p: str, block: Block, x: str) -> str:
    gain = g.store(f"{p}.norm.weight", block.gain)
    if block.shift is None:
        return g.node("SimplifiedLayerNormalization", [x, gain], f"{p}.norm", epsilon=1e-6)[0]
    shift = g.store(f"{p}.norm.bias", block.shift)
    return g.node("LayerNormalization", [x, gain, shift], f"{p}.norm", epsilon=1e-6)[0]


def drawn(seed: int = 0) -> Array:
    """An x."""
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)
