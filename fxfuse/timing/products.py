"""Products of a timed chain, in each of the ways that weights are stored in ONNX files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from fxfuse.timing.shape import Shape

if TYPE_CHECKING:
    from fxfuse.timing.chains import Graph

__all__ = ["Products"]


class Products:
    """Writes y = x W + b into a graph."""

    def __init__(self, graph: Graph, shape: Shape) -> None:
        self._graph = graph
        self._weights = shape.weights
        self._shape = shape
        self._rounded: dict[str, str] = {}

    def linear(self, x: str, columns: int, rows: int, bias: bool) -> str:
        """From `columns` numbers to `rows`."""
        graph = self._graph
        if self._weights.startswith("int8"):
            y = self._integers(x, columns, rows)
        elif self._weights.startswith("nbits"):
            y = self._nbits(x, columns, rows)
        else:
            y = graph.node("MatMul", x, graph.floats(columns, rows))
        return graph.node("Add", y, graph.floats(rows)) if bias else y

    def _nbits(self, x: str, columns: int, rows: int) -> str:
        graph, (bits, block, level) = self._graph, self._shape.nbits
        blocks = -(-columns // block)
        packed = graph.weight((rows, blocks, block * bits // 8), TensorProto.UINT8)
        attrs = {"K": columns, "N": rows, "bits": bits, "block_size": block}
        attrs |= {"accuracy_level": level} if level else {}
        scales = graph.floats(rows * blocks)
        return graph.node("MatMulNBits", x, packed, scales, domain="com.microsoft", **attrs)

    def _integers(self, x: str, columns: int, rows: int) -> str:
        """As dynamic quantisation writes it; products of one value share its rounding."""
        graph = self._graph
        if x not in self._rounded:
            self._rounded[x] = graph.node("DynamicQuantizeLinear", x, outputs=3)
        rounded = self._rounded[x]
        weight, zero = graph.weight((columns, rows), TensorProto.INT8), graph.constant(np.array(0, np.int8))
        product = graph.node("MatMulInteger", rounded, weight, f"{rounded}/2", zero)
        scale = graph.node("Mul", f"{rounded}/1", graph.scalar(0.001))
        return graph.node("Mul", graph.node("Cast", product, to=TensorProto.FLOAT), scale)
