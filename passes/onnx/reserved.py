"""Names that ONNX Runtime's optimiser gives, and cannot give a second time.

A file that a session saved after optimising holds shapes named "gemm_input_shape" or
"gemm_input_shape_token_48". Where a product and its bias are written into such a file, the next session makes
a Gemm of them, wants such a name again, finds it taken and refuses the file (seen with onnxruntime 1.31). So
these few get another name.
"""

from __future__ import annotations

import re

import onnx

__all__ = ["free_reserved", "reread"]

_RESERVED = re.compile(r"gemm_(in|out)put_shape(_token_\d+)?")


def free_reserved(model: onnx.ModelProto) -> None:
    """Rename stored tensors of the main graph that have such a name; changes `model`."""
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    public = {value.name for value in (*graph.input, *graph.output)}
    taken = stored | {each for node in graph.node for each in node.output}
    new = {name: _free(name, taken) for name in sorted(stored - public) if _RESERVED.fullmatch(name)}
    for tensor in graph.initializer if new else ():
        tensor.name = new.get(tensor.name, tensor.name)
    for value in graph.value_info if new else ():
        value.name = new.get(value.name, value.name)
    reread(graph, new)


def _free(name: str, taken: set[str]) -> str:
    return next(made for index in range(1, len(taken) + 2) if (made := f"{name}_{index}") not in taken)


def reread(graph: onnx.GraphProto, new: dict[str, str]) -> None:
    """Give the nodes of a graph, and of its subgraphs, the new names to read."""
    for node in graph.node if new else ():
        for index, name in enumerate(node.input):
            if name in new:
                node.input[index] = new[name]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                reread(inner, new)
