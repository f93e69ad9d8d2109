"""A decoder without attention as a small ONNX file, made by hand so that each test can damage it.

ids -> Gather -> [x + down(silu(gate(n(x))) * up(n(x)))] * layers -> MatMul -> logits
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCAB, HIDDEN, WIDTH = 32, 16, 24


@dataclass
class Small:
    """The parts of a model that is being put together; `model()` gives it."""

    layers: int = 3
    scale: float = 0.005
    dtype: int = TensorProto.FLOAT
    paths: bool = True
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(7)
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
        logits = helper.make_tensor_value_info("logits", self.dtype, ["batch", "sequence", VOCAB])
        self.inputs.append(ids)
        self.outputs.append(logits)
        self._weight("embed", (VOCAB, HIDDEN), 1.0)
        self._weight("gain", (HIDDEN,), 0.0, 1.0)
        self._weight("head", (HIDDEN, VOCAB), 0.3)
        self.weights += [self._store("eps", np.array(1e-6)), self._store("one", np.array(1.0))]
        self._node("Gather", "embed", "input_ids", out="x0")
        for layer in range(self.layers):
            self._block(layer)
        self._node("MatMul", f"x{self.layers}", "head", out="logits")

    def model(self) -> onnx.ModelProto:
        """The model, with opset 20."""
        graph = helper.make_graph(self.nodes, "small", self.inputs, self.outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def _block(self, layer: int) -> None:
        x, p = f"x{layer}", f"model.layers.{layer}.mlp"
        self._weight(f"{p}.gain", (HIDDEN,), 0.2, 1.0)
        self._weight(f"{p}.gate_proj.weight", (HIDDEN, WIDTH), 0.5)
        self._weight(f"{p}.up_proj.weight", (HIDDEN, WIDTH), 0.5)
        self._weight(f"{p}.down_proj.weight", (WIDTH, HIDDEN), self.scale)
        self._node("Mul", x, x, out=f"{p}/square")
        self._node("ReduceMean", f"{p}/square", "axes", out=f"{p}/mean", keepdims=1)
        self._node("Add", f"{p}/mean", "eps", out=f"{p}/safe")
        self._node("Sqrt", f"{p}/safe", out=f"{p}/root")
        self._node("Div", x, f"{p}/root", out=f"{p}/unit")
        self._node("Mul", f"{p}/unit", f"{p}.gain", out=f"{p}/norm")
        self._node("MatMul", f"{p}/norm", f"{p}.gate_proj.weight", out=f"{p}/gate")
        self._node("Sigmoid", f"{p}/gate", out=f"{p}/sigmoid")
        self._node("Mul", f"{p}/gate", f"{p}/sigmoid", out=f"{p}/silu")
        self._node("MatMul", f"{p}/norm", f"{p}.up_proj.weight", out=f"{p}/up")
        self._node("Mul", f"{p}/silu", f"{p}/up", out=f"{p}/inner")
        self._node("MatMul", f"{p}/inner", f"{p}.down_proj.weight", out=f"{p}/down")
        self._node("Add", x, f"{p}/down", out=f"x{layer + 1}")

    def _node(self, op: str, *inputs: str, out: str, **attributes: Any) -> None:
        if op == "ReduceMean" and all(each.name != "axes" for each in self.weights):
            self.weights.append(numpy_helper.from_array(np.array([-1]), "axes"))
        name = out if self.paths else ""
        self.nodes.append(helper.make_node(op, list(inputs), [out], name, **attributes))

    def _weight(self, name: str, shape: tuple[int, ...], spread: float, centre: float = 0.0) -> None:
        self.weights.append(self._store(name, centre + spread * self.random.standard_normal(shape)))

    def _store(self, name: str, values: np.ndarray[Any, Any]) -> onnx.TensorProto:
        kind = helper.tensor_dtype_to_np_dtype(self.dtype)
        return numpy_helper.from_array(values.astype(kind), name)


def save(path: Path, model: onnx.ModelProto | None = None, *, external: bool = False, **parts: Any) -> Path:
    """Write a model, `Small(**parts)` by default, with its weights in PATH.data beside it if `external`."""
    model = Small(**parts).model() if model is None else model
    if external:
        options = {"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 64}
        onnx.save(model, path, **options)
    else:
        onnx.save(model, path)
    return path
