"""Carry a rewritten onnx-graphsurgeon graph back into the ModelProto it was read from.

onnx-graphsurgeon's own exporter drops node metadata, doc strings and model metadata. So every node that was
not touched keeps its NodeProto byte for byte; only new nodes and constants come from the exporter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from fxfuse.passes.naming import MARK
from fxfuse.passes.onnx.copies import copy_fields
from fxfuse.passes.onnx.view import OnnxView
from fxfuse.passes.onnx.writer import Writer

__all__ = ["splice"]


def splice(
    original: onnx.ModelProto,
    view: OnnxView,
    writers: Sequence[Writer],
    marks: Sequence[str],
    store: Callable[[gs.Constant], onnx.TensorProto | None] = lambda _: None,
) -> onnx.ModelProto:
    """`original` with `view.graph`'s changes; `marks` names the blocks that each writer's nodes come from.

    `view` was read from `original`, or from a copy that differs in inferred shapes alone. `store` gives a
    new constant as it is to be stored; what it gives None for is taken into the model.
    """
    origin = {id(node): mark for writer, mark in zip(writers, marks, strict=True) for node in writer.nodes}
    new = [tensor for writer in writers for tensor in writer.constants]
    alive = _alive(view, {id(node) for node in view.graph.nodes})
    model = onnx.ModelProto()
    copy_fields(original, model, without=("graph",))
    source, graph = original.graph, model.graph
    copy_fields(source, graph, without=("node", "initializer", "value_info", "input"))
    kept = [node for node in view.graph.nodes if id(node) in alive]
    graph.node.extend(_proto(view, node, origin) for node in kept)
    gone = _gone(view, kept)
    # Old models list their initializers as inputs too.
    stored = {tensor.name for tensor in source.initializer}
    graph.input.extend(value for value in source.input if value.name not in gone & stored)
    graph.initializer.extend(tensor for tensor in source.initializer if tensor.name not in gone)
    graph.initializer.extend(store(tensor) or _stored(tensor) for tensor in new)
    graph.value_info.extend(value for value in source.value_info if value.name not in gone)
    return model


def _stored(tensor: gs.Constant) -> onnx.TensorProto:
    """A constant as it is stored; onnx-graphsurgeon cannot pack integers of less than a byte."""
    if tensor.values.dtype.name in ("int2", "uint2", "int4", "uint4"):
        return onnx.numpy_helper.from_array(tensor.values, tensor.name)
    proto: onnx.TensorProto = OnnxExporter.export_tensor_proto(tensor)
    return proto


def _proto(view: OnnxView, node: gs.Node, origin: dict[int, str]) -> onnx.NodeProto:
    proto = view.proto(node)
    if proto is None:
        exported: onnx.NodeProto = OnnxExporter.export_node(node)
        if origin[id(node)]:
            exported.metadata_props.add(key=MARK, value=origin[id(node)])
        return exported
    inputs = [each.name for each in node.inputs]
    if inputs == list(proto.input):
        return proto
    changed = onnx.NodeProto()
    changed.CopyFrom(proto)
    del changed.input[:]
    changed.input.extend(inputs)
    return changed


def _alive(view: OnnxView, nodes: set[int]) -> set[int]:
    """Nodes that something reads, or that nothing read before either."""
    outputs = {each for each in view.tensors if view.is_output(each)}
    readers: dict[str, int] = {}
    for node in view.graph.nodes:
        for each in node.inputs:
            readers[each.name] = readers.get(each.name, 0) + 1
        for graph in node.subgraphs():
            for name in _outer_reads(graph):
                readers[name] = readers.get(name, 0) + 1
    alive = set(nodes)
    for node in reversed(view.graph.nodes):
        names = [each.name for each in node.outputs if each.name]
        if any(name in outputs or readers.get(name) for name in names) or _was_unread(view, names):
            continue
        alive.discard(id(node))
        for each in node.inputs:
            readers[each.name] -= 1
    return alive


def _was_unread(view: OnnxView, names: Iterable[str]) -> bool:
    return not any(name in view.read_before for name in names)


def _outer_reads(graph: gs.Graph) -> Iterable[str]:
    for node in graph.nodes:
        yield from (each.name for each in node.inputs)
        for inner in node.subgraphs():
            yield from _outer_reads(inner)
    yield from (each.name for each in graph.outputs)


def _gone(view: OnnxView, kept: Sequence[gs.Node]) -> set[str]:
    """Names that the rewrite left without a producer or a reader."""
    there = {each.name for node in kept for each in (*node.inputs, *node.outputs)}
    for node in kept:
        for graph in node.subgraphs():
            there.update(_outer_reads(graph))
    before = view.read_before | {output for node in view.model.graph.node for output in node.output}
    return {name for name in before if name not in there and not view.is_output(name)}
