"""onnxruntime.quantization on one product at a time, so that memory holds a part of one weight and no model.

Both kinds of weights have scales of their own for every output, so the columns of a weight can be quantised
a part at a time: the same numbers as of the whole, and no weight is too large for a protobuf message.
"""

from __future__ import annotations

import functools
import importlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import helper

from fxfuse.quantisation.options import Quantise
from fxfuse.quiet import quiet
from fxfuse.runtime import load_onnxruntime

__all__ = ["PART", "Quantised", "quantise"]

PART = 1 << 20
"""Elements of a weight that are quantised at a time, few enough for a cache: they are read by columns."""

Array = np.ndarray[Any, Any]
_COLUMNS = {"quantized": 1}
"""The axis that outputs are counted along, by the end of a tensor's name; the first one elsewhere."""


@dataclass(frozen=True)
class Quantised:
    """The nodes that stand for a product, and the tensors that they read; `weight` names the packed one."""

    nodes: tuple[onnx.NodeProto, ...]
    tensors: Mapping[str, Array]
    weight: str


def quantise(node: onnx.NodeProto, weight: Array, opset: int, wish: Quantise) -> Quantised:
    """What ONNX Runtime's quantiser makes of the MatMul `node` and its weight [in, out]."""
    step = max(1, PART // max(1, weight.shape[0]))
    parts = [
        _quantise_part(node, np.ascontiguousarray(weight[:, start : start + step]), opset, wish)
        for start in range(0, max(1, weight.shape[1]), step)
    ]
    tensors = {
        name: _joined([part.tensors[name] for part in parts], _COLUMNS.get(name.rpartition("_")[2], 0))
        for name in parts[0].tensors
    }
    for made in parts[0].nodes:
        for attribute in made.attribute:
            if made.op_type == "MatMulNBits" and attribute.name == "N":
                attribute.i = weight.shape[1]
    return Quantised(parts[0].nodes, tensors, parts[0].weight)


def _joined(arrays: list[Array], axis: int) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)


def _quantise_part(node: onnx.NodeProto, weight: Array, opset: int, wish: Quantise) -> Quantised:
    made = (_as_int4 if wish.kind == "int4" else _as_int8)(_alone(node, weight, opset), wish)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    own = node.input[1]
    packed = next(name for name in tensors if name in (f"{own}_Q4", f"{own}_quantized"))
    return Quantised(tuple(map(_copied, made.graph.node)), tensors, packed)


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node of its own, that does not keep the memory of its model."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _alone(node: onnx.NodeProto, weight: Array, opset: int) -> onnx.ModelProto:
    """A model of nothing but the product, with the names that it has in the whole."""
    tensor = onnx.numpy_helper.from_array(weight, node.input[1])
    rows, columns = weight.shape
    values = [
        helper.make_tensor_value_info(name, tensor.data_type, ["batch", "tokens", size])
        for name, size in ((node.input[0], rows), (node.output[0], columns))
    ]
    own = helper.make_node("MatMul", list(node.input), list(node.output), node.name or node.output[0])
    graph = helper.make_graph([own], "product", values[:1], values[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    # The quantiser warns of models that were not prepared for it; here is nothing to prepare.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    return model


def _as_int4(model: onnx.ModelProto, wish: Quantise) -> onnx.ModelProto:
    library = _library("matmul_nbits_quantizer")
    with quiet(library.__name__):
        quantizer = library.MatMulNBitsQuantizer(
            model,
            bits=4,
            block_size=wish.block_size,
            is_symmetric=True,
            accuracy_level=wish.accuracy_level,
        )
        quantizer.process()
    made: onnx.ModelProto = quantizer.model.model
    return made


def _as_int8(model: onnx.ModelProto, wish: Quantise) -> onnx.ModelProto:
    library = _library("quantize")
    with tempfile.TemporaryDirectory() as folder, _root_silent():
        path = Path(folder) / "int8.onnx"
        library.quantize_dynamic(model, path, op_types_to_quantize=["MatMul"], per_channel=True)
        return onnx.load(path)


@functools.cache
def _library(name: str) -> ModuleType:
    """A module of onnxruntime.quantization."""
    load_onnxruntime()
    with _root_silent():
        return importlib.import_module(f"onnxruntime.quantization.{name}")


@contextmanager
def _root_silent() -> Iterator[None]:
    """The library gives the root logger a handler and a level of its own, and writes to it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with quiet(""):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
