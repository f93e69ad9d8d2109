"""An ONNX graph as a `View`, over onnx-graphsurgeon. Values are tensor names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch

from fxfuse.passes.elementwise import FUNCTIONS
from fxfuse.passes.onnx.integers import fold_integers
from fxfuse.passes.onnx.names import scope_of
from fxfuse.passes.onnx.ops import HANDLERS, NodeCall, torch_dtype_name
from fxfuse.passes.records import Value
from fxfuse.passes.view import Op

__all__ = ["OnnxView", "to_torch"]


class OnnxView:
    """Reads the main graph of `model`; `read` turns a stored tensor into an array, wherever its bytes lie."""

    def __init__(
        self, model: onnx.ModelProto, read: Callable[[onnx.TensorProto], np.ndarray[Any, Any]]
    ) -> None:
        self.model = model
        self.graph = gs.import_onnx(model)
        self._read = read
        self.tensors: dict[Value, gs.Tensor] = self.graph.tensors()
        self._outputs = {each.name for each in self.graph.outputs}
        for subgraph in self.graph.subgraphs(recursive=True):
            self._outputs |= {each.name for each in subgraph.outputs}
        self._protos = dict(zip(map(id, self.graph.nodes), model.graph.node, strict=True))
        self._positions = {id(node): index for index, node in enumerate(self.graph.nodes)}
        self.read_before = {each.name for node in self._walk(self.graph) for each in node.inputs}
        self._ops: dict[Value, Op] = {}
        self._stored: dict[Value, onnx.TensorProto] = {each.name: each for each in model.graph.initializer}
        self._constants: set[Value] = set(self._stored)
        for node in self.graph.nodes:
            self._translate(node)

    def values(self) -> Iterable[Value]:
        """Every computed value, in the order of the nodes."""
        return list(self._ops)

    def op(self, value: Value) -> Op | None:
        """See `View.op`."""
        return self._ops.get(value)

    def readers(self, value: Value) -> Sequence[Value]:
        """See `View.readers`."""
        tensor = self.tensors.get(value)
        nodes = tensor.outputs if tensor is not None else []
        return [output.name for node in nodes for output in node.outputs if output.name]

    def is_output(self, value: Value) -> bool:
        """See `View.is_output`."""
        return value in self._outputs

    def is_constant(self, value: Value) -> bool:
        """See `View.is_constant`."""
        return value in self._constants

    def is_parameter(self, value: Value) -> bool:
        """See `View.is_parameter`; a file does not tell a trained scalar from a literal."""
        return False

    def stored(self, value: Value) -> torch.Tensor:
        """See `View.stored`."""
        return to_torch(self._read(self._stored[value]))

    def shape(self, value: Value) -> tuple[int | None, ...] | None:
        """See `View.shape`."""
        if value in self._stored:
            return tuple(self._stored[value].dims)
        tensor = self.tensors.get(value)
        op = self._ops.get(value)
        if tensor is not None and tensor.shape is not None:
            return tuple(size if isinstance(size, int) and size >= 0 else None for size in tensor.shape)
        if op is not None and op.kind in ("transpose", "cast", "pass") and value in self._constants:
            inner = self.shape(op.inputs[0])
            return inner[::-1] if inner and op.kind == "transpose" else inner
        return None

    def dtype(self, value: Value) -> str | None:
        """See `View.dtype`."""
        if value in self._stored:
            return torch_dtype_name(self._stored[value].data_type)
        op = self._ops.get(value)
        if op is not None and op.kind == "cast":
            return str(op.attrs["dtype"])
        tensor = self.tensors.get(value)
        if tensor is not None and tensor.dtype is not None:
            is_number = isinstance(tensor.dtype, int)
            number = (
                tensor.dtype if is_number else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
            )
            return torch_dtype_name(int(number))
        same = op is not None and (op.kind in FUNCTIONS or op.kind in ("linear", "rms_norm", "layer_norm"))
        return self.dtype(op.inputs[0]) if op and same and isinstance(op.inputs[0], str) else None

    def node_name(self, value: Value) -> str:
        """See `View.node_name`."""
        tensor = self.tensors.get(value)
        node = tensor.inputs[0] if tensor is not None and tensor.inputs else None
        return str(node.name or value) if node is not None else str(value)

    def scope(self, value: Value) -> str:
        """See `View.scope`."""
        tensor = self.tensors.get(value)
        if tensor is None or not tensor.inputs:
            return scope_of(None, str(value))
        weights = [each.name for each in tensor.inputs[0].inputs if each.name in self._constants]
        return scope_of(self._protos.get(id(tensor.inputs[0])), weights[0] if weights else "")

    def proto(self, node: gs.Node) -> onnx.NodeProto | None:
        """The NodeProto that `node` was read from; None for a new node."""
        return self._protos.get(id(node))

    def position(self, node: gs.Node) -> int:
        """The place of `node` among the nodes that were read."""
        return self._positions[id(node)]

    def width(self, value: str) -> int | None:
        """The size of the last axis of `value`, also where shape inference did not reach."""
        for _ in range(16):
            shape = self.shape(value)
            if shape and shape[-1] is not None:
                return shape[-1]
            op = self._ops.get(value)
            if op is None or not op.inputs:
                return None
            if op.kind == "linear":
                weight = self.shape(op.inputs[1]) or (None, None)
                return weight[1 if op.attrs["transposed"] else 0]
            if op.kind == "part":
                return int(op.attrs["stop"] - op.attrs["start"])
            changing = [each for each in op.inputs if isinstance(each, str) and each not in self._constants]
            if op.kind not in (*FUNCTIONS, "rms_norm", "layer_norm") or not changing:
                return None
            value = changing[0]
        return None

    def integers(self, value: str, seen: list[str]) -> list[int] | None:
        """A small integer tensor, computed from constants and known sizes; `seen` collects what it took."""
        return fold_integers(self, value, seen)

    def last_integer(self, value: str) -> int | None:
        """The last element of a small integer tensor, where no more than that may be known."""
        tensor = self.tensors.get(value)
        node = tensor.inputs[0] if tensor is not None and tensor.inputs else None
        if node is not None and node.op == "Concat":
            return self.last_integer(node.inputs[-1].name)
        if node is not None and node.op == "Shape" and not node.attrs:
            return self.width(node.inputs[0].name)
        known = self.integers(value, [])
        return known[-1] if known else None

    def number(self, value: str) -> float | None:
        """A constant of one element."""
        tensor = self._stored.get(value)
        return (
            float(self._read(tensor).reshape(-1)[0])
            if tensor is not None and self._size(tensor) == 1
            else None
        )

    def small(self, value: str) -> list[int] | None:
        """A stored integer tensor of a few elements."""
        tensor = self._stored.get(value)
        kinds = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        if tensor is None or tensor.data_type not in kinds or self._size(tensor) > 16:
            return None
        return [int(each) for each in self._read(tensor).reshape(-1)]

    @staticmethod
    def _walk(graph: gs.Graph) -> Iterable[gs.Node]:
        yield from graph.nodes
        for subgraph in graph.subgraphs(recursive=True):
            yield from subgraph.nodes

    @staticmethod
    def _size(tensor: onnx.TensorProto) -> int:
        return int(np.prod(tensor.dims, dtype=np.int64))

    def _translate(self, node: gs.Node) -> None:
        if node.op == "Constant" and self._keep_constant(node):
            return
        call, handler = NodeCall(node, self), HANDLERS.get(node.op)
        for index, output in enumerate(node.outputs):
            op = handler(call, index) if handler is not None else None
            op = op or Op(node.op, tuple(each.name for each in node.inputs if each.name))
            self._ops[output.name] = op
            operands = [each for each in op.inputs if each is not None]
            if op.kind in FUNCTIONS and operands and all(self._is_fixed(each) for each in operands):
                self._constants.add(output.name)

    def _keep_constant(self, node: gs.Node) -> bool:
        attributes = self._protos[id(node)].attribute
        if len(attributes) != 1:
            return False
        attribute = attributes[0]
        name = node.outputs[0].name
        if attribute.name == "value":
            tensor = attribute.t
        elif attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
            kind = np.float32 if "float" in attribute.name else np.int64
            tensor = onnx.numpy_helper.from_array(
                np.asarray(onnx.helper.get_attribute_value(attribute), kind)
            )
        else:
            return False
        self._stored[name] = tensor
        self._constants.add(name)
        return True

    def _is_fixed(self, operand: Any) -> bool:
        if isinstance(operand, Op):
            return all(self._is_fixed(each) for each in operand.inputs)
        return isinstance(operand, (int, float)) or operand in self._constants


def to_torch(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """An array as a tensor over the same memory; bfloat16 goes by its bits, as NumPy's own types lack it."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    with warnings.catch_warnings():
        # Weights read from a file are read-only, and nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
