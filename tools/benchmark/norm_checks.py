"""Norms of ONNX Runtime in float16 and float32 on inputs whose squares leave the type: zeros, NaN, Inf."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import fxfuse

__all__ = ["Prober", "open_prober"]

HIDDEN, TOKENS, EPS = 4096, 4, 1e-5
NORMS = ("SimplifiedLayerNormalization", "RMSNormalization", "SkipSimplifiedLayerNormalization", "primitives")
SCALES = (1e-3, 1.0, 100.0, 1000.0, 8000.0)
TOLERANCE = {"float16": 5e-3, "float32": 1e-5}


def open_prober(device: str) -> Prober:
    """The factory of the probing process."""
    return Prober(device)


class Prober:
    """Runs each norm on each input."""

    def __init__(self, device: str) -> None:
        self._device = device

    def probe(self) -> list[dict[str, Any]]:
        """One record for each norm, type and input."""
        return [
            self._probe(norm, dtype, name, x)
            for norm in NORMS
            for dtype in ("float16", "float32")
            for name, x in _inputs().items()
        ]

    def _probe(self, norm: str, dtype: str, name: str, x: NDArray[np.float64]) -> dict[str, Any]:
        record: dict[str, Any] = {
            "norm": norm, "dtype": dtype, "provider": self._device, "input": name,
            "zeros": None, "nan": None, "inf": None, "error": None, "verdict": "good",
        }  # fmt: skip
        x = x.astype(dtype)
        try:
            y = self._run(norm, dtype, x)
        except Exception as error:  # an operator without a kernel, an older ONNX Runtime
            record["verdict"] = f"cannot run: {str(error).strip().splitlines()[0]}"
            return record
        exact = x.astype(np.float64)
        exact = exact / np.sqrt(np.mean(exact**2, -1, keepdims=True) + EPS)
        record["zeros"] = int(((y == 0) & (np.abs(exact) > 1e-3)).sum())
        record["nan"], record["inf"] = int(np.isnan(y).sum()), int(np.isinf(y).sum())
        with np.errstate(all="ignore"):
            error = float(np.linalg.norm(y.astype(np.float64) - exact) / np.linalg.norm(exact))
        record["error"] = error if np.isfinite(error) else None
        if record["zeros"] or record["nan"] or record["inf"]:
            record["verdict"] = "zeros, NaN or Inf"
        elif not error <= TOLERANCE[dtype]:
            record["verdict"] = "wrong"
        return record

    def _run(self, norm: str, dtype: str, x: NDArray[Any]) -> NDArray[Any]:
        data = model_of(norm, dtype).SerializeToString()
        if self._device == "cuda":
            from tools.benchmark.in_onnxruntime import open_session

            session = open_session(data, None)
        else:
            session = fxfuse.session(data, "cpu", threads=1)
        feed = {"x": x}
        if norm.startswith("Skip"):
            feed["skip"] = np.zeros_like(x)
        found: NDArray[Any] = session.run(["y"], feed)[0]
        return found


def _inputs() -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((1, TOKENS, HIDDEN))
    found = {f"scale {scale:g}": drawn * scale for scale in SCALES}
    outlier = drawn.copy()
    outlier[..., 7] = 60000.0
    return found | {"one value of 60000": outlier}


def model_of(norm: str, dtype: str) -> onnx.ModelProto:
    """A model of one norm with a gain of ones; primitives as torch exports them, in float32 inside."""
    kind = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}[dtype]
    stored = [numpy_helper.from_array(np.ones(HIDDEN, dtype), "gain")]
    names = ["x", "skip"] if norm.startswith("Skip") else ["x"]
    ends = [helper.make_tensor_value_info(name, kind, [1, TOKENS, HIDDEN]) for name in [*names, "y"]]
    if norm == "primitives":
        stored += [
            numpy_helper.from_array(np.array(2, np.float32), "two"),
            numpy_helper.from_array(np.array(EPS, np.float32), "eps"),
            numpy_helper.from_array(np.array([-1], np.int64), "axes"),
        ]
        nodes = [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Pow", ["wide", "two"], ["square"]),
            helper.make_node("ReduceMean", ["square", "axes"], ["mean"], keepdims=1),
            helper.make_node("Add", ["mean", "eps"], ["safe"]),
            helper.make_node("Sqrt", ["safe"], ["root"]),
            helper.make_node("Reciprocal", ["root"], ["scale"]),
            helper.make_node("Mul", ["wide", "scale"], ["unit"]),
            helper.make_node("Cast", ["unit"], ["narrow"], to=kind),
            helper.make_node("Mul", ["narrow", "gain"], ["y"]),
        ]
    else:
        more: dict[str, Any] = {} if norm.startswith("Skip") else {"axis": -1, "stash_type": 1}
        domain = "com.microsoft" if norm.startswith("Skip") else ""
        nodes = [helper.make_node(norm, [*names, "gain"], ["y"], epsilon=EPS, domain=domain, **more)]
    graph = helper.make_graph(nodes, norm, ends[:-1], ends[-1:], stored)
    opset = 23 if norm == "RMSNormalization" else 18
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
