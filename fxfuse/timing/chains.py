"""Chains of FFN blocks as ONNX files: sequential as a model has them, or as one wide FFN in some form.

Only the speed of such a file means anything. Weights lie in a file that all of them share.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from fxfuse.passes.forms import RMS_OPSET, Form
from fxfuse.timing.products import Products
from fxfuse.timing.shape import Shape
from fxfuse.timing.weights import WeightFile

__all__ = ["fused_chain", "sequential_chain", "write_chain"]

_OPSET = 20
_MICROSOFT = "com.microsoft"
INPUT, OUTPUT = "x", "y"


def write_chain(shape: Shape, form: Form | None, weights: WeightFile, path: Path) -> None:
    """Write the chain, sequential without a form; beside the file of its weights."""
    graph = Graph(shape)
    out = sequential_chain(graph) if form is None else fused_chain(graph, form)
    weights.grow(graph.size)
    onnx.save(graph.model(out, weights.path.name), path)


def sequential_chain(graph: Graph) -> str:
    """Block after block; returns the name of the stream at the end."""
    shape, x = graph.shape, INPUT
    for width in shape.widths:
        hidden = graph.norm(x, with_gain=True, operator=shape.operator)
        branch = _ffn(graph, hidden, width, packed=shape.packed, bias=shape.bias, last_bias=shape.bias)
        x = graph.node("Add", x, branch)
    return x


def fused_chain(graph: Graph, form: Form) -> str:
    """One wide FFN; returns the name of the stream at the end."""
    shape = graph.shape
    operator = shape.operator if form.norm == "own" else form.norm
    hidden = graph.norm(INPUT, with_gain=bool(operator), operator=operator)
    bias = shape.bias or shape.norm == "layer"  # the norm's own goes through gate and up
    packed = form.packed(shape.gated)
    if shape.weights == "int8":
        branch = _apart(graph, hidden, packed=packed, bias=bias)
    else:
        parts = [
            _ffn(graph, hidden, stop - start, packed=packed, bias=bias, last_bias=bias and start == 0)
            for start, stop in form.spans(shape.width)
        ]
        branch = parts[0] if len(parts) == 1 else graph.node("Sum", *parts)
    return graph.node("Add", INPUT, branch)


def _ffn(graph: Graph, hidden: str, width: int, *, packed: bool, bias: bool, last_bias: bool) -> str:
    inner = _inner(graph, hidden, width, packed=packed, bias=bias)
    return graph.products.linear(inner, width, graph.shape.hidden, last_bias)


def _inner(graph: Graph, hidden: str, width: int, *, packed: bool, bias: bool) -> str:
    size, linear = graph.shape.hidden, graph.products.linear
    if not graph.shape.gated:
        return graph.activation(linear(hidden, size, width, bias))
    if packed:
        gate, up = graph.split(linear(hidden, size, 2 * width, bias), [width, width])
    else:
        gate, up = linear(hidden, size, width, bias), linear(hidden, size, width, bias)
    return graph.node("Mul", graph.activation(gate), up)


def _apart(graph: Graph, hidden: str, *, packed: bool, bias: bool) -> str:
    """A down product for each block: integers that are rounded with one scale do not stand side by side."""
    shape = graph.shape
    inner = _inner(graph, hidden, shape.width, packed=packed, bias=bias)
    parts = graph.split(inner, shape.widths)
    downs = [
        graph.products.linear(part, width, shape.hidden, bias and index == 0)
        for index, (part, width) in enumerate(zip(parts, shape.widths, strict=True))
    ]
    return functools.reduce(lambda total, down: graph.node("Add", total, down), downs)


class Graph:
    """Nodes and weights of one file as they come."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.products = Products(self, shape)
        self.size = 0
        self._opset = _OPSET

    def node(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attrs: Any) -> str:
        """A node; the name of its first output, others are that with /1, /2 at the end."""
        name = f"{op}_{len(self.nodes)}"
        names = [name, *(f"{name}/{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op, list(inputs), names, name, domain=domain, **attrs))
        return name

    def constant(self, values: np.ndarray[Any, Any]) -> str:
        """A small tensor, stored in the file itself."""
        name = f"constant_{len(self.stored)}"
        self.stored.append(onnx.numpy_helper.from_array(values, name))
        return name

    def weight(self, dims: Sequence[int], kind: int) -> str:
        """A tensor in the file of weights, after those before it."""
        name = f"weight_{len(self.stored)}"
        tensor = TensorProto(name=name, dims=dims, data_type=kind, data_location=TensorProto.EXTERNAL)
        length = int(np.prod(dims)) * helper.tensor_dtype_to_np_dtype(kind).itemsize
        for key, value in (("location", ""), ("offset", str(self.size)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        self.stored.append(tensor)
        self.size += -(-length // 4096) * 4096
        return name

    def floats(self, *dims: int) -> str:
        """A weight in the chain's own type."""
        return self.weight(dims, self.kind)

    @property
    def kind(self) -> int:
        """The chain's own type, as ONNX numbers it."""
        name = {"float32": "FLOAT", "float64": "DOUBLE"}.get(self.shape.dtype, self.shape.dtype.upper())
        return int(getattr(TensorProto, name))

    def scalar(self, value: float) -> str:
        """A number in the chain's own type."""
        return self.constant(np.array(value, helper.tensor_dtype_to_np_dtype(self.kind)))

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        """Parts of the last axis."""
        first = self.node("Split", x, self.constant(np.array(sizes, np.int64)), outputs=len(sizes), axis=-1)
        return [first, *(f"{first}/{index}" for index in range(1, len(sizes)))]

    def norm(self, x: str, *, with_gain: bool, operator: str) -> str:
        """The norm as `operator`, or written out."""
        size = self.shape.hidden
        if self.shape.norm == "layer":
            scale = [self.floats(size), self.floats(size)] if with_gain else [self.floats(size)]
            return self.node("LayerNormalization", x, *scale, axis=-1, epsilon=1e-5)
        if operator:
            self._opset = max(self._opset, RMS_OPSET) if operator == "RMSNormalization" else self._opset
            more: dict[str, Any] = {"stash_type": 1} if operator == "SimplifiedLayerNormalization" else {}
            return self.node(operator, x, self.floats(size), axis=-1, epsilon=1e-6, **more)
        axes = self.constant(np.array([-1], np.int64))
        mean = self.node("ReduceMean", self.node("Pow", x, self.scalar(2.0)), axes, keepdims=1)
        root = self.node("Sqrt", self.node("Add", mean, self.scalar(1e-6)))
        unit = self.node("Mul", x, self.node("Reciprocal", root))
        return self.node("Mul", unit, self.floats(size)) if with_gain else unit

    def activation(self, x: str) -> str:
        """The activation; one that has no name here as the dearest of the simple ones."""
        name = self.shape.activation
        if name in ("gelu", "gelu_tanh"):
            return self.node("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")
        if name == "relu":
            return self.node("Relu", x)
        if name == "relu_squared":
            once = self.node("Relu", x)
            return self.node("Mul", once, once)
        if name == "quick_gelu":
            return self.node("Mul", x, self.node("Sigmoid", self.node("Mul", x, self.scalar(1.702))))
        if name == "identity":
            return x
        return self.node("Mul", x, self.node("Sigmoid", x))

    def model(self, out: str, location: str) -> onnx.ModelProto:
        """The file; `location` is the file of weights beside it."""
        for tensor in self.stored:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        nodes = [*self.nodes, helper.make_node("Identity", [out], [OUTPUT])]
        shape: list[str | int | None] = [1, "tokens", self.shape.hidden]
        x, y = (helper.make_tensor_value_info(name, self.kind, shape) for name in (INPUT, OUTPUT))
        graph = helper.make_graph(nodes, "chain", [x], [y], self.stored)
        opsets = [helper.make_opsetid("", self._opset), *self._others()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _others(self) -> Iterator[onnx.OperatorSetIdProto]:
        if any(node.domain == _MICROSOFT for node in self.nodes):
            yield helper.make_opsetid(_MICROSOFT, 1)
