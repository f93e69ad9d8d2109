"""New nodes and constants of an ONNX graph as a rewrite asks for them, and casts and splits made of these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fxfuse.passes.onnx.view import OnnxView

__all__ = ["Writer", "cast", "cast_to", "numpy_dtype", "split"]


class Writer:
    """Adds nodes and constants to a graph under one prefix, in the order they are asked for."""

    def __init__(self, graph: gs.Graph, prefix: str) -> None:
        self.graph = graph
        self.prefix = prefix
        self.nodes: list[gs.Node] = []
        self.before: gs.Node | None = None
        self.branch = ""
        self.constants: list[gs.Constant] = []
        self.weights: dict[str, str] = {}
        self._taken = set(graph.tensors())

    def constant(self, name: str, array: np.ndarray) -> gs.Constant:
        """A stored tensor named under the prefix."""
        tensor = gs.Constant(self.free(f"{self.prefix}/{name}"), array)
        self.constants.append(tensor)
        return tensor

    def node(
        self, op: str, inputs: Sequence[gs.Tensor], name: str, like: gs.Tensor | None = None, **attrs: object
    ) -> gs.Variable:
        """A node with one output, named under the prefix; `like` lends the output its type."""
        own = self.free(f"{self.prefix}/{name}")
        output = gs.Variable(own, dtype=like.dtype if like is not None else None)
        domain = attrs.pop("domain", None)
        self.nodes.append(gs.Node(op, output.name, attrs, list(inputs), [output], domain=domain))
        return output

    def free(self, name: str) -> str:
        """`name`, numbered where a tensor has it already; taken from now on."""
        candidate, count = name, 1
        while candidate in self._taken:
            candidate, count = f"{name}_{count}", count + 1
        self._taken.add(candidate)
        return candidate


def cast_to(view: OnnxView, writer: Writer, value: str, dtype: str, name: str) -> gs.Tensor:
    """A value of the graph in `dtype`."""
    tensor = view.tensors[value]
    return tensor if view.dtype(value) in (None, dtype) else cast(writer, tensor, name, dtype)


def cast(writer: Writer, tensor: gs.Tensor, name: str, dtype: str) -> gs.Tensor:
    """`tensor` in `dtype`."""
    kind = {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())
    return writer.node("Cast", [tensor], name, to=int(getattr(onnx.TensorProto, kind)))


def numpy_dtype(name: str) -> np.dtype:
    """The array type of an element type that is spelled as in torch."""
    if name == "bfloat16":
        return onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    return np.dtype(name)


def split(
    view: OnnxView, writer: Writer, tensor: gs.Tensor, sizes: Sequence[int], names: Sequence[str]
) -> list[gs.Variable]:
    """Parts of a tensor's last axis."""
    opset = next((each.version for each in view.model.opset_import if each.domain in ("", "ai.onnx")), 20)
    outputs = [gs.Variable(writer.free(f"{writer.prefix}/{name}_part"), dtype=tensor.dtype) for name in names]
    inputs, attrs = [tensor], {"axis": -1}
    if opset >= 13:
        inputs.append(writer.constant("sizes", np.asarray(sizes, np.int64)))
    else:
        attrs["split"] = list(sizes)  # type: ignore[assignment]
    writer.nodes.append(gs.Node("Split", writer.free(f"{writer.prefix}/split"), attrs, inputs, outputs))
    return outputs
