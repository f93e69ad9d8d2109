"""A drawn decoder as an ONNX graph, node by node: every part in one of the ways tools write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.passes.onnx_graphs import HIDDEN, Graph
from tests.properties.meaning import Meaning

__all__ = ["ONNX_NEAR_MISSES", "OnnxDecoder", "OnnxWriting", "onnx_writings"]

MIXING = np.array([[0.1, -0.2, 0.3], [0.2, 0.1, -0.1], [-0.3, 0.2, 0.2]])


@dataclass(frozen=True)
class OnnxWriting:
    """How one block is written; `near` is the near miss that it is instead, if any."""

    norm: str  # "op", "divided", "reciprocal", "power"
    squared: bool  # Mul(x, x) rather than Pow(x, 2)
    axis: int
    cast: bool  # a cast to float32 and back, in whichever type
    product: str  # "matmul", "transpose", "gemm", "fused", "identity"
    form: str  # "apart", "split", "slice", "split_turned"
    spelled: bool
    flips: tuple[bool, ...]  # operand order of: norm, gain, act * up, residual, bias
    before: bool  # the multiplier inside the FFN, not after it
    near: str | None = None


onnx_writings = st.builds(
    OnnxWriting,
    norm=st.sampled_from(["op", "divided", "reciprocal", "power"]),
    squared=st.booleans(),
    axis=st.sampled_from([-1, 2]),
    cast=st.booleans(),
    product=st.sampled_from(["matmul", "transpose", "gemm", "fused", "identity"]),
    form=st.sampled_from(["apart", "split", "slice", "split_turned"]),
    spelled=st.booleans(),
    flips=st.tuples(*[st.booleans()] * 5),
    before=st.booleans(),
)

ONNX_NEAR_MISSES = (
    "mean over positions", "squares of another value", "eps after the root", "gain per position",
    "up plus one", "softmax", "constant per channel", "rows mixed", "post-norm", "norm of the branch",
    "stream doubled", "subtracted", "tap inside",
)  # fmt: skip


class OnnxDecoder:
    """The model, the weights of each block by the names of `Meaning.branch`, and the near miss in float64."""

    def __init__(self, meanings: Sequence[Meaning], writings: Sequence[OnnxWriting], dtype: type) -> None:
        self.meanings, self.writings = list(meanings), list(writings)
        self.graph, self.dtype = Graph(dtype), dtype
        self.weights = [self._draw(meaning) for meaning in meanings]
        x, taps = "x", []
        for index, meaning in enumerate(meanings):
            if meaning.before == "tap" and x != "x":
                taps.append(x)
            x = self._between(meaning.before, x)
            x = _Writer(self.graph, meaning, writings[index], self.weights[index]).block(x)
        self.model: onnx.ModelProto = self.graph.model(x, *taps)

    def __repr__(self) -> str:
        return f"{self.dtype} " + ", ".join(
            f"{a} {b}" for a, b in zip(self.meanings, self.writings, strict=True)
        )

    def between(self, before: str | None, x: Tensor) -> Tensor:
        """What stands on the stream, as a formula."""
        if before == "mixing":
            return x + torch.tanh(torch.from_numpy(MIXING).to(x.dtype) @ x)
        return x * 0.75 if before == "scaled" else x

    def _between(self, before: str | None, x: str) -> str:
        g = self.graph
        if before == "mixing":
            return g.node("Add", x, g.node("Tanh", g.node("MatMul", g.weight(MIXING), x)))  # type: ignore[no-any-return]
        return g.node("Mul", x, g.weight(0.75)) if before == "scaled" else x

    def _draw(self, meaning: Meaning) -> dict[str, np.ndarray[Any, Any]]:
        g, n, width = self.graph, HIDDEN, meaning.width
        sizes = {"gate": (width, n), "up": (width, n), "down": (n, width)}
        found = {name: g.draw(*size) for name, size in sizes.items()}
        found |= {f"{name}_bias": g.draw(size[0], spread=0.3) for name, size in sizes.items()}
        return found | {"gain": g.draw(n, spread=0.3, centre=1.0), "shift": g.draw(n, spread=0.2)}


@dataclass
class _Writer:
    graph: Graph
    meaning: Meaning
    how: OnnxWriting
    weights: dict[str, np.ndarray[Any, Any]]

    def block(self, x: str) -> str:
        near, g = self.how.near, self.graph
        if near == "post-norm":
            return self._norm(g.node("Add", x, self._ffn(x)))
        f = self._ffn(self._norm(x))
        f = self._norm(f) if near == "norm of the branch" else f
        f = g.node("Mul", f, g.node("Sigmoid", f)) if near == "tap inside" else f
        if near == "subtracted":
            return g.node("Sub", x, f)  # type: ignore[no-any-return]
        x = g.node("Add", x, x) if near == "stream doubled" else x
        return self._two("Add", x, f, 3)

    def _two(self, op: str, one: str, other: str, flip: int) -> str:
        pair = (other, one) if self.how.flips[flip] else (one, other)
        return self.graph.node(op, *pair)  # type: ignore[no-any-return]

    def _norm(self, x: str) -> str:
        g, how, meaning = self.graph, self.how, self.meaning
        odd = how.near in (
            "mean over positions",
            "squares of another value",
            "eps after the root",
            "gain per position",
        )
        gain = g.weight(self.weights["gain"])
        if how.norm == "op" and not odd:
            if meaning.norm == "layer":
                shift = g.weight(self.weights["shift"])
                return g.node("LayerNormalization", x, gain, shift, axis=how.axis, epsilon=meaning.eps)  # type: ignore[no-any-return]
            return g.node("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=meaning.eps)  # type: ignore[no-any-return]
        y = g.node("Cast", x, to=onnx.TensorProto.FLOAT) if how.cast else x
        kind = np.float32 if how.cast else g.dtype
        if meaning.norm == "layer":
            y = g.node("Sub", y, g.node("ReduceMean", y, g.ints(how.axis), keepdims=1))
        y = self._unit(y, kind)
        y = g.node("Cast", y, to=onnx.helper.np_dtype_to_tensor_dtype(g.dtype)) if how.cast else y
        y = self._two("Mul", y, gain, 1)
        y = g.node("Mul", y, g.weight([[0.5], [1.5], [1.0]])) if how.near == "gain per position" else y
        return y if meaning.norm == "rms" else self._two("Add", y, g.weight(self.weights["shift"]), 1)

    def _unit(self, z: str, kind: Any) -> str:
        g, how = self.graph, self.how
        s = g.node("Add", z, g.weight(1.0, dtype=kind)) if how.near == "squares of another value" else z
        square = g.node("Mul", s, s) if how.squared else g.node("Pow", s, g.weight(2.0, dtype=kind))
        axis = 1 if how.near == "mean over positions" else how.axis
        mean = g.node("ReduceMean", square, g.ints(axis), keepdims=1)
        eps = g.weight(self.meaning.eps, dtype=kind)
        if how.near == "eps after the root":
            return g.node("Div", z, g.node("Add", g.node("Sqrt", mean), g.weight(0.1, dtype=kind)))  # type: ignore[no-any-return]
        safe = self._two("Add", mean, eps, 0)
        if how.norm == "power":
            return self._two("Mul", z, g.node("Pow", safe, g.weight(-0.5, dtype=kind)), 0)
        root = g.node("Sqrt", safe)
        if how.norm == "divided":
            return g.node("Div", z, root)  # type: ignore[no-any-return]
        return self._two("Mul", z, g.node("Reciprocal", root), 0)

    def _ffn(self, h: str) -> str:
        g, near, meaning = self.graph, self.how.near, self.meaning
        gate, up = self._first(h)
        if near == "rows mixed":
            gate = g.node("Slice", gate, g.ints(-1), g.ints(-(2**62)), g.ints(1), g.ints(-1))
        act = self._activate(gate)
        act = g.node("Softmax", act, axis=-1) if near == "softmax" else act
        act = (
            g.node("Mul", act, g.weight(np.linspace(0.5, 1.5, meaning.width)))
            if near == "constant per channel"
            else act
        )
        if near == "up plus one":
            up = (
                g.node("Add", up, g.weight(1.0)) if up else g.node("ReduceMean", gate, g.ints(-1), keepdims=1)
            )
        inner = act if up is None else self._two("Mul", act, up, 2)
        scaled = meaning.multiplier != 1.0
        inside = scaled and self.how.before and not meaning.biased
        inner = g.node("Mul", inner, g.weight(meaning.multiplier)) if inside else inner
        f = self._product(inner, "down")
        return f if inside or not scaled else self._two("Mul", f, g.weight(meaning.multiplier), 4)

    def _first(self, h: str) -> tuple[str, str | None]:
        if not self.meaning.gated:
            return self._product(h, "gate"), None
        if self.how.form == "apart":
            return self._product(h, "gate"), self._product(h, "up")
        names = ("up", "gate") if self.how.form == "split_turned" else ("gate", "up")
        for suffix in ("", "_bias"):
            self.weights[f"both{suffix}"] = np.concatenate(
                [self.weights[f"{name}{suffix}"] for name in names]
            )
        first, second = self._parts(self._product(h, "both"))
        return (second, first) if self.how.form == "split_turned" else (first, second)

    def _parts(self, both: str) -> tuple[str, str]:
        g, width = self.graph, self.meaning.width
        if self.how.form != "slice":
            first, second = g.node("Split", both, g.ints(width, width), outputs=2, axis=self.how.axis)
            return first, second
        ends = [(g.ints(a), g.ints(b), g.ints(self.how.axis)) for a, b in ((0, width), (width, 2**62))]
        return g.node("Slice", both, *ends[0]), g.node("Slice", both, *ends[1])

    def _product(self, x: str, name: str) -> str:
        g, how, weight = self.graph, self.how.product, self.weights[name]
        bias = self.weights[f"{name}_bias"] if self.meaning.biased else None
        if how == "gemm":
            rows = g.node("Reshape", x, g.ints(-1, weight.shape[1]))
            given = [g.weight(bias)] if bias is not None else []
            y = g.node("Gemm", rows, g.weight(weight), *given, transB=1)
            return g.node("Reshape", y, g.ints(2, 3, weight.shape[0]))  # type: ignore[no-any-return]
        if how == "fused":
            y = g.node("FusedMatMul", x, g.weight(weight / 2), domain="com.microsoft", alpha=2.0, transB=1)
        elif how == "transpose":
            y = g.node("MatMul", x, g.node("Transpose", g.weight(weight), perm=[1, 0]))
        elif how == "identity":
            y = g.node("MatMul", x, g.node("Identity", g.weight(weight.T)))
        else:
            y = g.node("MatMul", x, g.weight(weight.T))
        return y if bias is None else self._two("Add", y, g.weight(bias), 4)

    def _activate(self, gate: str) -> str:
        g, name, spelled = self.graph, self.meaning.activation, self.how.spelled

        def number(value: float) -> str:
            return g.weight(value)

        if name in ("relu", "relu_squared"):
            y = g.node("Max", gate, number(0.0)) if spelled else g.node("Relu", gate)
            return y if name == "relu" else g.node("Mul", y, y) if spelled else g.node("Pow", y, number(2.0))
        if name == "gelu_tanh" and spelled:
            cube = g.node("Mul", number(0.044715), g.node("Pow", gate, number(3.0)))
            inner = g.node("Tanh", g.node("Mul", number((2 / np.pi) ** 0.5), g.node("Add", gate, cube)))
            return g.node("Mul", g.node("Mul", gate, number(0.5)), g.node("Add", inner, number(1.0)))  # type: ignore[no-any-return]
        if name == "gelu" and spelled:
            erf = g.node("Erf", g.node("Div", gate, number(2**0.5)))
            return g.node("Mul", g.node("Mul", gate, g.node("Add", number(1.0), erf)), number(0.5))  # type: ignore[no-any-return]
        if name.startswith("gelu"):
            return g.node("Gelu", gate, approximate="tanh" if name == "gelu_tanh" else "none")  # type: ignore[no-any-return]
        alpha = {"silu": 1.0, "quick_gelu": 1.702}[name]
        if not spelled:
            return g.node("QuickGelu", gate, domain="com.microsoft", alpha=alpha)  # type: ignore[no-any-return]
        return self._two("Mul", gate, g.node("Sigmoid", g.node("Mul", gate, number(alpha))), 2)
