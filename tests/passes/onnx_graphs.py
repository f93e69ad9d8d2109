"""Tiny ONNX graphs of norm-FFN blocks, put together node by node, and their meaning in float64.

    g = Graph(); x = g.block(g.block("x")); model = g.model(x)

`Block` holds what a block means; a test that writes a part in another way hands in its own writer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from fxfuse.passes.chains import find_chains
from fxfuse.passes.onnx.contract import contract
from fxfuse.passes.onnx.expand import expand
from fxfuse.passes.onnx.rewrite import insert, rewrite_group
from fxfuse.passes.onnx.splice import splice
from fxfuse.passes.onnx.view import OnnxView
from fxfuse.passes.records import Found
from fxfuse.passes.weights import widen
from fxfuse.sessions import session

HIDDEN = 8
Array = np.ndarray[Any, Any]


@dataclass
class Block:
    """The arrays of one block, [in, out], and what else it means."""

    gain: Array
    gate: Array
    up: Array | None
    down: Array
    shift: Array | None = None
    biases: dict[str, Array] = field(default_factory=dict)
    kind: str = "rms"
    eps: float = 1e-6
    scale: float | Array = 1.0
    act: Callable[[torch.Tensor], torch.Tensor] = F.silu

    def branch(self, x: Array) -> Array:
        """FFN(norm(x)) in float64."""
        h = torch.from_numpy(x.astype(np.float64))
        if self.kind == "layer":
            h = h - h.mean(-1, keepdim=True)
        h = h / torch.sqrt(h.square().mean(-1, keepdim=True) + self.eps) * _double(self.gain)
        h = h if self.shift is None else h + _double(self.shift)
        inner = self.act(h @ _double(self.gate) + _double(self.biases.get("gate", 0.0)))
        if self.up is not None:
            inner = inner * (h @ _double(self.up) + _double(self.biases.get("up", 0.0)))
        out = inner @ _double(self.down) + _double(self.biases.get("down", 0.0))
        return (out * _double(self.scale)).numpy()


def _double(value: Array | float) -> torch.Tensor:
    return torch.from_numpy(np.asarray(value, dtype=np.float64))


class Graph:
    """Nodes and weights in the order they are asked for; inputs and outputs are the stream's."""

    def __init__(self, dtype: type = np.float32, opset: int = 20, seed: int = 0) -> None:
        self.dtype, self.opset = np.dtype(dtype), opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.blocks: list[Block] = []

    def weight(self, array: Any, name: str | None = None, dtype: Any = None) -> str:
        """Store a tensor; the stream's type unless told."""
        name = name or f"w{len(self.weights)}"
        self.weights[name] = numpy_helper.from_array(np.asarray(array, dtype or self.dtype), name)
        return name

    def ints(self, *values: int) -> str:
        """Store a list of integers."""
        return self.weight(values, dtype=np.int64)

    def draw(self, *shape: int, spread: float = 0.5, centre: float = 0.0) -> Array:
        """A random array in the stream's type."""
        return (centre + spread * self.random.standard_normal(shape)).astype(self.dtype)

    def node(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node; gives its output's name, or a list of them."""
        names = [
            f"{op.lower()}_{len(self.nodes)}" + (f"_{index}" if index else "") for index in range(outputs)
        ]
        self.nodes.append(
            helper.make_node(op, list(inputs), names, f"n{len(self.nodes)}", domain=domain, **attributes)
        )
        return names[0] if outputs == 1 else names

    # Parts of a block, as torch.onnx writes them

    def rms(self, x: str, block: Block) -> str:
        """x * (1 / sqrt(mean(x^2) + eps)) * gain"""
        mean = self.node("ReduceMean", self.node("Pow", x, self.weight(2.0)), self.ints(-1), keepdims=1)
        root = self.node("Sqrt", self.node("Add", mean, self.weight(block.eps)))
        return self.node("Mul", self.node("Mul", x, self.node("Reciprocal", root)), self.weight(block.gain))

    def silu(self, gate: str) -> str:
        """gate * sigmoid(gate)"""
        return self.node("Mul", gate, self.node("Sigmoid", gate))

    def ffn(self, h: str, block: Block) -> str:
        """down(silu(gate(h)) * up(h))"""
        gate = self.product(h, block, "gate")
        inner = self.silu(gate) if block.act is F.silu else self.node("Relu", gate)
        if block.up is not None:
            inner = self.node("Mul", inner, self.product(h, block, "up"))
        return self.product(inner, block, "down")

    def product(self, x: str, block: Block, role: str) -> str:
        """MatMul, and Add of a bias where the block has one."""
        out = self.node(
            "MatMul", x, self.weight(getattr(block, role), f"layers.{len(self.blocks)}.{role}.weight")
        )
        return self.node("Add", self.weight(block.biases[role]), out) if role in block.biases else out

    def new_block(self, width: int = 12, *, gated: bool = True, **meaning: Any) -> Block:
        """Draw the arrays of a block."""
        up = self.draw(HIDDEN, width) if gated else None
        gain = self.draw(HIDDEN, spread=0.3, centre=1.0)
        return Block(gain, self.draw(HIDDEN, width), up, self.draw(width, HIDDEN), **meaning)

    def block(
        self,
        x: str,
        block: Block | None = None,
        norm: Callable[..., str] | None = None,
        ffn: Callable[..., str] | None = None,
        add: Callable[[str, str], str] | None = None,
    ) -> str:
        """x + ffn(norm(x)); each part may be written by another function of (graph, input, block)."""
        block = block or self.new_block()
        h = norm(self, x, block) if norm else self.rms(x, block)
        f = ffn(self, h, block) if ffn else self.ffn(h, block)
        self.blocks.append(block)
        return add(x, f) if add else self.node("Add", x, f)

    def model(
        self, *outputs: str, inputs: Sequence[str] = ("x",), ir_version: int = 10, shaped: bool = True
    ) -> onnx.ModelProto:
        """The model, with batch and length as names; outputs have the stream's shape, if `shaped`."""
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        given = [helper.make_tensor_value_info(name, kind, ["b", "s", HIDDEN]) for name in inputs]
        results = [
            helper.make_tensor_value_info(name, kind, ["b", "s", HIDDEN])
            if shaped
            else helper.make_empty_tensor_value_info(name)
            for name in outputs
        ]
        graph = helper.make_graph(self.nodes, "tiny", given, results, list(self.weights.values()))
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)

    def parallel(self, x: Array, groups: Sequence[Sequence[int]] | None = None) -> Array:
        """Each group of block indices as x + the sum of its branches, in float64."""
        x = x.astype(np.float64)
        for group in groups or [range(len(self.blocks))]:
            x = x + sum(self.blocks[index].branch(x) for index in group)
        return x


def example(dtype: type = np.float32, batch: int = 2, length: int = 3) -> Array:
    """x [batch, length, HIDDEN]."""
    return np.random.default_rng(7).standard_normal((batch, length, HIDDEN)).astype(dtype)


def view_of(model: onnx.ModelProto) -> OnnxView:
    """A view over inferred shapes, with what hides other operators written out."""
    expanded = expand(model)
    shaped = onnx.shape_inference.infer_shapes(expanded.model)
    return OnnxView(shaped, numpy_helper.to_array, expanded.whole)


def find(model: onnx.ModelProto) -> Found:
    """The chains of a model."""
    return find_chains(view_of(model))


def lengths(found: Found) -> list[int]:
    """How many blocks each chain has."""
    return [len(chain.blocks) for chain in found.chains]


def reasons(found: Found) -> str:
    """All misses as text."""
    return "\n".join(f"{miss.where}: {miss.reason}" for miss in found.misses)


def fuse(
    model: onnx.ModelProto, groups: Sequence[Sequence[int]] | None = None, view: OnnxView | None = None
) -> onnx.ModelProto:
    """A copy in which every chain, or the groups of block indices given, is one wide FFN."""
    view = view or view_of(model)
    chains = [chain.blocks for chain in find_chains(view).chains]
    blocks = [block for chain in chains for block in chain]
    chosen = [[blocks[index] for index in group] for group in groups] if groups else chains
    writers = []
    for index, group in enumerate(chosen):
        wide = {name: to_numpy(tensor) for name, tensor in widen(view, group).tensors().items()}
        writers.append(rewrite_group(view, group, wide, f"fxfuse.{index}"))
    insert(view.graph, writers)
    expanded = expand(model)
    marks = [", ".join(block.name for block in group) for group in chosen]
    return contract(splice(expanded.model, view, writers, marks), expanded)


def to_numpy(tensor: torch.Tensor) -> Array:
    """A tensor as an array; bfloat16 goes by its bits."""
    if tensor.dtype == torch.bfloat16:
        return (
            tensor.contiguous()
            .view(torch.int16)
            .numpy()
            .view(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
        )
    return tensor.contiguous().numpy()


def run(model: onnx.ModelProto, x: Array, **inputs: Array) -> list[Array]:
    """All outputs in ONNX Runtime."""
    if not any("LayerNormalization" in node.op_type for node in model.graph.node):
        onnx.checker.check_model(model)  # which does not know an operator of ONNX Runtime's own
    opened = session(model.SerializeToString(), "cpu")
    return [np.asarray(each) for each in opened.run(None, {"x": x, **inputs})]
