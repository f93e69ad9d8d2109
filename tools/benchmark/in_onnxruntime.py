"""Contestants in ONNX Runtime; on CUDA, input and output are buffers on the GPU that are bound once."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fxfuse
from fxfuse.runtime import CPU, CUDA, cuda_problem, load_onnxruntime
from tools.benchmark.cases import Settings

__all__ = ["OnnxContestant", "OnnxOnCuda", "open_session"]

WARM_UP = 3


class OnnxContestant:
    """An ONNX file on the CPU."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.groups: list[int] = []
        self.notes: list[str] = []
        self._path, self._settings = path, settings
        self._session: Any = None
        self._feed: dict[str, NDArray[Any]] = {}

    def prepare(self, x: NDArray[Any], shape: tuple[int, ...]) -> None:
        """Open the file the first time; one session serves all numbers of tokens."""
        if self._session is None:
            self._session = fxfuse.session(self._path, "cpu", threads=self._settings.threads)
        (described,) = self._session.get_inputs()
        self._feed = {described.name: x.astype(np.float16) if "float16" in described.type else x}
        self.call()

    def forget(self) -> None:
        """Close the session."""
        self._session = None

    def call(self) -> Any:
        """Run once."""
        return self._session.run(None, self._feed)

    def wait(self) -> None:
        """Nothing is under way."""

    def answer(self) -> NDArray[np.float64]:
        """Run once and fetch the output."""
        found: NDArray[np.float64] = self.call()[0].astype(np.float64)
        return found


def open_session(path: Path | bytes, tokens: int | None, *, graph: bool = False) -> Any:
    """A session on CUDA without TF32; `tokens` fixes the shapes, as a CUDA graph needs.

    Raises:
        RuntimeError: CUDA cannot be used.
    """
    if problem := cuda_problem():
        raise RuntimeError(f"ONNX Runtime has no CUDA here: {problem}")
    runtime = load_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if tokens is not None and isinstance(path, Path):
        for name in _open_dimensions(path):
            options.add_free_dimension_override_by_name(name, tokens)
    on_cuda = {
        "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested", "enable_cuda_graph": str(int(graph))
    }  # fmt: skip
    source = path if isinstance(path, bytes) else str(path)
    return runtime.InferenceSession(source, options, providers=[(CUDA, on_cuda), CPU], enable_fallback=0)


def _open_dimensions(path: Path) -> list[str]:
    import onnx

    model = onnx.load(path, load_external_data=False)
    shapes = [value.type.tensor_type.shape for value in model.graph.input]
    return sorted({dim.dim_param for shape in shapes for dim in shape.dim if dim.dim_param})


class OnnxOnCuda:
    """An ONNX file on CUDA with I/O binding, with or without ONNX Runtime's CUDA graph."""

    def __init__(self, path: Path, dtype: str, graph: bool) -> None:
        self.groups: list[int] = []
        self.notes: list[str] = []
        self._path, self._dtype, self._graph = path, dtype, graph
        self._session: Any = None

    def prepare(self, x: NDArray[Any], shape: tuple[int, ...]) -> None:
        """Open the file for the input's shape, bind, and run until a graph is captured."""
        import torch
        from onnx import TensorProto

        self.forget()
        self._session = open_session(self._path, x.shape[1], graph=self._graph)
        if CUDA not in self._session.get_providers():
            raise RuntimeError("ONNX Runtime opened the file without CUDA")
        dtype = getattr(torch, self._dtype)
        numbers = {
            torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16,
            torch.bfloat16: TensorProto.BFLOAT16, torch.int64: TensorProto.INT64,
        }  # fmt: skip
        tensor = torch.from_numpy(x)
        self._x = tensor.to("cuda", dtype if tensor.is_floating_point() else None).contiguous()
        self._y = torch.full(shape, float("nan"), device="cuda", dtype=dtype)
        torch.cuda.synchronize()
        self._binding = self._session.io_binding()
        (one,), (other,) = self._session.get_inputs(), self._session.get_outputs()
        self._binding.bind_input(
            one.name, "cuda", 0, numbers[self._x.dtype], tuple(self._x.shape), self._x.data_ptr()
        )
        self._binding.bind_output(
            other.name, "cuda", 0, numbers[self._y.dtype], tuple(self._y.shape), self._y.data_ptr()
        )
        self._run_options = load_onnxruntime().RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        for _ in range(WARM_UP):
            self.call()
            self.wait()

    def forget(self) -> None:
        """Close the session and free the buffers."""
        self._binding = self._session = self._x = self._y = self._run_options = None
        gc.collect()

    def call(self) -> Any:
        """Run once; the work may still be under way on return."""
        self._session.run_with_iobinding(self._binding, self._run_options)

    def wait(self) -> None:
        """Wait for everything on the GPU."""
        import torch

        torch.cuda.synchronize()

    def answer(self) -> NDArray[np.float64]:
        """Run once into a poisoned output and fetch it."""
        self._y.fill_(float("nan"))
        self.wait()
        self.call()
        self.wait()
        found: NDArray[np.float64] = self._y.double().cpu().numpy()
        return found
