"""A float32 copy of a bfloat16 model, to run where a runtime has no bfloat16 kernels. Same numbers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["has_bfloat16", "upcast"]

_BF16, _F32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT


def has_bfloat16(model: onnx.ModelProto) -> bool:
    """Whether any stored tensor or graph input is bfloat16."""
    values = (*model.graph.input, *model.graph.output)
    stored = any(tensor.data_type == _BF16 for tensor in model.graph.initializer)
    return stored or any(value.type.tensor_type.elem_type == _BF16 for value in values)


def upcast(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every bfloat16 is float32; external data must have been loaded."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _upcast_graph(copy.graph)
    for function in copy.functions:
        _upcast_nodes(function.node)
    return copy


def _upcast_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _upcast_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == _BF16:
            value.type.tensor_type.elem_type = _F32
    _upcast_nodes(graph.node)


def _upcast_nodes(nodes: object) -> None:
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "stash_type", "output_dtype") and attribute.i == _BF16:
                attribute.i = _F32
            if attribute.type == onnx.AttributeProto.TENSOR:
                _upcast_tensor(attribute.t)
            for graph in (attribute.g, *attribute.graphs):
                _upcast_graph(graph)


def _upcast_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == _BF16:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
