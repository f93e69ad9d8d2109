"""Every name and note of a model, and the walk through the bodies of its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

__all__ = ["bodies", "texts", "walk"]


def texts(model: onnx.ModelProto) -> Iterable[str | bytes]:
    """Every name that something may be looked up or told by."""
    for opset in model.opset_import:
        yield opset.domain
    yield from _notes(model)
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
        yield from _texts_of(function.node)
    yield from _texts_of_graph(model.graph)


def _texts_of_graph(graph: onnx.GraphProto) -> Iterable[str | bytes]:
    yield graph.name
    for tensor in (*graph.initializer, *(each.values for each in graph.sparse_initializer)):
        yield tensor.name
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
        for dim in value.type.tensor_type.shape.dim:
            yield dim.dim_param
    yield from _texts_of(graph.node)


def _texts_of(nodes: Sequence[onnx.NodeProto]) -> Iterable[str | bytes]:
    for node in nodes:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from _notes(node)
        for attribute in node.attribute:
            yield attribute.name
            yield _text(attribute.s)
        for body in bodies(node):
            yield from _texts_of_graph(body)


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _notes(holder: onnx.ModelProto | onnx.NodeProto) -> Iterable[str | bytes]:
    for entry in holder.metadata_props:
        yield from (entry.key, entry.value)


def bodies(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    """The graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def walk(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    """Nodes, and those in their bodies."""
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from walk(body.node)
