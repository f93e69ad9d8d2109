"""An ONNX graph as a `View`, over onnx-graphsurgeon. Values are tensor names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch

from fxfuse.passes.elementwise import FUNCTIONS
from fxfuse.passes.naming import MARK, is_wide_weight
from fxfuse.passes.onnx.constants import BROADCASTING, DEEPEST, UNREADABLE, may_broadcast
from fxfuse.passes.onnx.integers import fold_integers, is_whole_shape
from fxfuse.passes.onnx.names import scope_of
from fxfuse.passes.onnx.ops import HANDLERS, NodeCall, torch_dtype_name
from fxfuse.passes.onnx.provenance import read_provenance
from fxfuse.passes.records import Value
from fxfuse.passes.view import Op

__all__ = ["OnnxView", "to_numpy", "to_torch"]

Handler = Callable[[NodeCall, int], Op | None]

_DOMAINS = ("", "ai.onnx", "com.microsoft")


class OnnxView:
    """Reads the main graph of `model`; `read` turns a stored tensor into an array, wherever its bytes lie.

    `whole`: outputs of nodes that hide others and could not be written out, and why.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        read: Callable[[onnx.TensorProto], np.ndarray[Any, Any]],
        whole: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.graph = gs.import_onnx(model)
        self._read = read
        self._whole = whole or {}
        self.tensors: dict[Value, gs.Tensor] = self.graph.tensors()
        self._outputs = {each.name for each in self.graph.outputs}
        for subgraph in self.graph.subgraphs(recursive=True):
            self._outputs |= {each.name for each in subgraph.outputs}
        self._protos = dict(zip(map(id, self.graph.nodes), model.graph.node, strict=True))
        self._positions = {id(node): index for index, node in enumerate(self.graph.nodes)}
        self.read_before = {each.name for node in self._walk(self.graph) for each in node.inputs}
        self._origins: dict[Value, tuple[str, ...]] = {
            name: group.blocks for group in read_provenance(model)[0] for name in group.weights.values()
        }
        self._ops: dict[Value, Op] = {}
        self._stored: dict[Value, onnx.TensorProto] = {
            each.name: each for each in model.graph.initializer if each.data_type not in UNREADABLE
        }
        self._depths: dict[Value, int] = {}
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
        if op is not None and op.kind in ("dequantize", "dequantize_packed", "quantize"):
            return op.attrs["shape"] if "shape" in op.attrs else self.shape(op.inputs[0])
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
        if op is not None and op.kind in ("dequantize", "dequantize_packed"):
            return self.dtype(op.inputs[1])
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
        weights = [
            each.name
            for each in tensor.inputs[0].inputs
            if each.name in self._constants and len(each.outputs) < 2  # a shared one names another layer
        ]
        return scope_of(self._protos.get(id(tensor.inputs[0])), *weights)

    def origin(self, value: Value) -> tuple[str, ...] | None:
        """See `View.origin`: by the model's record, by the node's mark, by the weight's name in torch."""
        if value in self._origins:
            return self._origins[value]
        tensor = self.tensors.get(value)
        proto = self._protos.get(id(tensor.inputs[0])) if tensor is not None and tensor.inputs else None
        notes = {entry.key: entry.value for entry in proto.metadata_props} if proto else {}
        if MARK in notes:
            return tuple(notes[MARK].split(", "))
        # torch.onnx gives a weight that it transposes a number for a name, and notes the old one.
        names = notes.values() if proto else [str(value)] if value in self._stored else []
        return () if any(map(is_wide_weight, names)) else None

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
        if node is not None and is_whole_shape(node):
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
        call, known = NodeCall(node, self), (node.domain or "") in _DOMAINS
        handler = HANDLERS.get(node.op) if known else None
        for index, output in enumerate(node.outputs):
            op = self._handled(handler, call, index) if handler is not None else None
            if output.name in self._whole:
                op = Op("whole", tuple(call.inputs), {"reason": self._whole[output.name]})
            op = op or Op(_native_kind(node.op), tuple(each.name for each in node.inputs if each.name))
            op = self._ops[output.name] = self._with_named_weight(output.name, op)
            operands = [each for each in op.inputs if each is not None]
            if op.kind in FUNCTIONS and operands and all(self._is_fixed(each) for each in operands):
                self._add_constant(output.name, op)

    @staticmethod
    def _handled(handler: Handler, call: NodeCall, index: int) -> Op | None:
        """The operator, if its node is as the operator must be; else ONNX Runtime tells what is wrong."""
        try:
            return handler(call, index)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return None

    def _add_constant(self, name: str, op: Op) -> None:
        """Keep `name` as a constant, unless it cannot be computed or is computed in too many steps."""
        depth = 1 + max(self._depth(each) for each in op.inputs)
        shapes = [self.shape(each) for each in op.inputs if isinstance(each, str)]
        if depth <= DEEPEST and (op.kind not in BROADCASTING or may_broadcast(shapes)):
            self._depths[name] = depth
            self._constants.add(name)

    def _depth(self, operand: Any) -> int:
        if isinstance(operand, Op):
            return 1 + max((self._depth(each) for each in operand.inputs), default=0)
        return self._depths.get(operand, 0)

    def _with_named_weight(self, output: str, op: Op) -> Op:
        """`op`; a weight that its node holds inside becomes a constant of the graph named on its own."""
        if op.kind != "linear" or not isinstance(op.inputs[1], Op) or not op.inputs[1].inputs:
            return op
        name, weight = f"{output}:weight", op.inputs[1]
        self._ops[name] = weight
        if weight.inputs[0] in self._origins:
            self._origins[name] = self._origins[weight.inputs[0]]
        if all(self._is_fixed(each) for each in weight.inputs):
            self._constants.add(name)
        return replace(op, inputs=(op.inputs[0], name, *op.inputs[2:]))

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
        if tensor.data_type in UNREADABLE:
            return False
        self._stored[name] = tensor
        self._constants.add(name)
        return True

    def _is_fixed(self, operand: Any) -> bool:
        if isinstance(operand, Op):
            return all(self._is_fixed(each) for each in operand.inputs)
        return isinstance(operand, (int, float)) or operand in self._constants


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A tensor as an array; bfloat16 goes by its bits."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
        return tensor.view(torch.int16).numpy().view(kind)
    return tensor.numpy()


def _native_kind(op: str) -> str:
    """The kind of an operator that is not translated, which is none of the vocabulary's."""
    return f"another {op}" if op[:1].islower() else op


_SMALL = {"int2": np.int8, "int4": np.int8, "uint2": np.uint8, "uint4": np.uint8}


def to_torch(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """An array as a tensor over the same memory; bfloat16 goes by its bits, as NumPy's own types lack it."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.name in _SMALL:
        array = array.astype(_SMALL[array.dtype.name])
    with warnings.catch_warnings():
        # Weights read from a file are read-only, and nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
