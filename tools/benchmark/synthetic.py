"""A decoder of any size with random weights and external data, written straight to the disk.

    ids -> Gather -> [norm, attention, +] [norm, gate, up, silu, down, +] ... -> norm -> MatMul -> logits

Attention is missing in a run of layers, whose FFNs make one chain together with that of the layer before.
Some random numbers are drawn once and used for all weights, each from another place: drawing 8 GB would take
minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Shape", "write_decoder"]

_POOL = 1 << 24  # elements that are drawn
_ALIGNMENT = 4096


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; `without` layers in the middle have no attention. dtype: spelled as in torch."""

    layers: int
    without: int
    hidden: int
    intermediate: int
    vocab: int = 32000
    dtype: str = "float32"

    def has_attention(self, layer: int) -> bool:
        """Whether a layer kept its attention."""
        first = (self.layers - self.without + 1) // 2
        return not first <= layer < first + self.without

    @property
    def block_bytes(self) -> int:
        """Bytes of one FFN's weights."""
        return 3 * self.hidden * self.intermediate * (4 if self.dtype == "float32" else 2)

    @property
    def largest_group(self) -> int:
        """Bytes of the one chain's weights."""
        return (self.without + (self.without < self.layers)) * self.block_bytes


def write_decoder(shape: Shape, path: Path) -> int:
    """Write `path` and `path`.data; returns the bytes of the weights."""
    with open(f"{path}.data", "wb") as file:
        decoder = _Decoder(shape, file, f"{path.name}.data")
        decoder.build()
        size = file.tell()
    path.write_bytes(decoder.model().SerializeToString())
    return size


class _Decoder:
    def __init__(self, shape: Shape, file: BinaryIO, name: str) -> None:
        self.shape, self.file, self.name = shape, file, name
        self.kind = int(getattr(TensorProto, {"float32": "FLOAT"}.get(shape.dtype, shape.dtype.upper())))
        self.dtype = np.dtype(helper.tensor_dtype_to_np_dtype(self.kind))
        rng = np.random.default_rng(0)
        self.pool = rng.standard_normal(_POOL, np.float32)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.drawn = 0

    def build(self) -> None:
        """Add every layer, from the embedding to the logits."""
        shape = self.shape
        self.small("axes", np.array([-1]))
        self.small("eps", np.array(1e-6, self.dtype))
        self.small("two", np.array(2, self.dtype))
        self.weight("embed", (shape.vocab, shape.hidden), 1.0)
        x = self.node("Gather", "embed", "input_ids", out="x")
        for layer in range(shape.layers):
            if shape.has_attention(layer):
                x = self.attention(x, f"model.layers.{layer}.self_attn")
            x = self.ffn(x, f"model.layers.{layer}.mlp")
        self.weight("lm_head.weight", (shape.hidden, shape.vocab), shape.hidden**-0.5)
        self.node("MatMul", self.norm(x, "model.norm"), "lm_head.weight", out="logits")

    def model(self) -> onnx.ModelProto:
        """The model, with opset 20."""
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
        logits = helper.make_tensor_value_info("logits", self.kind, ["batch", "sequence", self.shape.vocab])
        graph = helper.make_graph(self.nodes, "decoder", [ids], [logits], self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def attention(self, x: str, path: str) -> str:
        """One head as wide as the stream: the weights and their reading are what matters here."""
        hidden = self.shape.hidden
        read = self.norm(x, f"{path}.norm")
        q, k, v = (
            self.linear(read, f"{path}.{name}", hidden, hidden) for name in ("q_proj", "k_proj", "v_proj")
        )
        turned = self.node("Transpose", k, out=f"{path}/k", perm=[0, 2, 1])
        scores = self.node("MatMul", q, turned, out=f"{path}/scores")
        mixed = self.node("MatMul", self.node("Softmax", scores, out=f"{path}/share"), v, out=f"{path}/mixed")
        return self.node("Add", x, self.linear(mixed, f"{path}.o_proj", hidden, hidden), out=f"{path}/sum")

    def ffn(self, x: str, path: str) -> str:
        """norm, gate, up, silu, down and the residual add; each adds little, so that fusing loses little."""
        hidden, wide = self.shape.hidden, self.shape.intermediate
        read = self.norm(x, f"{path}.norm")
        gate = self.linear(read, f"{path}.gate_proj", hidden, wide)
        up = self.linear(read, f"{path}.up_proj", hidden, wide)
        silu = self.node("Mul", gate, self.node("Sigmoid", gate, out=f"{path}/sigmoid"), out=f"{path}/silu")
        inner = self.node("Mul", silu, up, out=f"{path}/inner")
        return self.node(
            "Add", x, self.linear(inner, f"{path}.down_proj", wide, hidden, 0.02), out=f"{path}/sum"
        )

    def norm(self, x: str, path: str) -> str:
        """RMSNorm as torch.onnx spells it out."""
        self.weight(f"{path}.weight", (self.shape.hidden,), 0.1, 1.0)
        square = self.node("Pow", x, "two", out=f"{path}/square")
        mean = self.node("ReduceMean", square, "axes", out=f"{path}/mean", keepdims=1)
        root = self.node("Sqrt", self.node("Add", mean, "eps", out=f"{path}/safe"), out=f"{path}/root")
        unit = self.node("Mul", x, self.node("Reciprocal", root, out=f"{path}/rate"), out=f"{path}/unit")
        return self.node("Mul", unit, f"{path}.weight", out=f"{path}/out")

    def linear(self, x: str, path: str, rows: int, columns: int, scale: float = 1.0) -> str:
        """A product with a weight [rows, columns]."""
        self.weight(f"{path}.weight", (rows, columns), scale * rows**-0.5)
        return self.node("MatMul", x, f"{path}.weight", out=f"{path}/out")

    def node(self, op: str, *inputs: str, out: str, **attributes: Any) -> str:
        """Add one node, named after its output."""
        self.nodes.append(helper.make_node(op, list(inputs), [out], out, **attributes))
        return out

    def small(self, name: str, values: np.ndarray[Any, Any]) -> None:
        """Store a constant in the model itself."""
        self.stored.append(numpy_helper.from_array(values, name))

    def weight(self, name: str, dims: tuple[int, ...], spread: float, centre: float = 0.0) -> None:
        """Write a weight to the data file, a part of the pool at a time."""
        count = int(np.prod(dims))
        self.file.write(b"\0" * (-self.file.tell() % _ALIGNMENT))
        tensor = onnx.TensorProto(name=name, data_type=self.kind, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self.name, "offset": self.file.tell(), "length": count * self.dtype.itemsize}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.stored.append(tensor)
        while count > 0:
            start = self.drawn * 7919 % (_POOL // 2)
            part = self.pool[start : start + min(count, _POOL // 2)]
            self.file.write((part * np.float32(spread) + np.float32(centre)).astype(self.dtype).tobytes())
            count -= len(part)
            self.drawn += 1
