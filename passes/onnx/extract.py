"""Cut a part out of an ONNX model: the nodes between some values and some others, as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

__all__ = ["ModelIndex", "extract", "subgraph_reads"]


class ModelIndex:
    """Who computes what in the main graph of a model, by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.producer = {
            output: index for index, node in enumerate(model.graph.node) for output in node.output if output
        }
        self.initializer = {tensor.name: tensor for tensor in model.graph.initializer}
        self.input = {value.name: value for value in model.graph.input}


def extract(index: ModelIndex, cuts: Mapping[str, int], outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of the model that computes `outputs` from `cuts` (name -> element type) and its inputs."""
    nodes: set[int] = set()
    tensors: dict[str, onnx.TensorProto] = {}
    inputs: dict[str, onnx.ValueInfoProto] = {}
    stack, seen = list(outputs), set[str]()
    while stack:
        name = stack.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        if name in cuts:
            inputs[name] = onnx.helper.make_tensor_value_info(name, cuts[name], None)
        elif name in index.initializer:
            tensors[name] = index.initializer[name]
        elif name in index.producer:
            nodes.add(index.producer[name])
            stack += subgraph_reads(index.model.graph.node[index.producer[name]])
        elif name in index.input:
            inputs[name] = index.input[name]
    graph = onnx.GraphProto(name=index.model.graph.name)
    graph.node.extend(index.model.graph.node[each] for each in sorted(nodes))
    graph.initializer.extend(tensors.values())
    graph.input.extend(inputs.values())
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)
    part = onnx.ModelProto(ir_version=index.model.ir_version, graph=graph)
    part.opset_import.extend(index.model.opset_import)
    part.functions.extend(index.model.functions)
    return part


def subgraph_reads(node: onnx.NodeProto) -> Iterable[str]:
    """Every value that a node reads, those that its subgraphs take from outside included."""
    found = list(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                found += subgraph_reads(inner)
            found += [output.name for output in graph.output]
    return found
