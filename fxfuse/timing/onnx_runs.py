"""The inside of a process that runs ONNX files in ONNX Runtime: it imports little, to start at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["FACTORY", "OnnxRuns", "make"]

FACTORY = "fxfuse.timing.onnx_runs:make"

Feed = Mapping[str, Any]


def make(device: str, threads: int | None, cuda_graphs: bool) -> OnnxRuns:
    """What a worker runs."""
    return OnnxRuns(device, threads, cuda_graphs)


class OnnxRuns:
    """One file at a time; on CUDA, inputs and outputs stay in the GPU's memory."""

    def __init__(self, device: str, threads: int | None, cuda_graphs: bool) -> None:
        self._on_cuda, self._threads, self._graphs = device == "cuda", threads, cuda_graphs
        self._path = ""
        self._session: Any = None
        self._feed: dict[str, Any] = {}
        self._binding: Any = None
        if self._on_cuda:
            from fxfuse.runtime import load_onnxruntime  # after torch, whose CUDA libraries it uses

            self._runtime: Any = load_onnxruntime()
        else:
            import onnxruntime

            self._runtime = onnxruntime

    def open(self, path: str) -> None:
        """Load a file, after the last one is gone."""
        self.close()
        self._path = path
        self._session = self._new_session()

    def close(self) -> None:
        """Let the file go."""
        self._session = self._binding = None
        self._feed = {}

    def prepare(self, inputs: Feed | Sequence[Any]) -> None:
        """Make ready for calls on these inputs; for a chain they are tokens, size and type of its only one.

        Raises:
            Exception: The file does not run on them.
        """
        feed = inputs if isinstance(inputs, Mapping) else {"x": _drawn(*inputs)}
        if self._on_cuda:
            self._bind(feed)
        else:
            self._feed = dict(feed)
        self.call()
        self.wait()

    def call(self) -> Any:
        """Run once."""
        if self._on_cuda:
            return self._session.run_with_iobinding(self._binding)
        return self._session.run(None, self._feed)

    def wait(self) -> None:
        """Wait for the GPU, where there is one."""
        if self._on_cuda:
            self._binding.synchronize_outputs()

    def _new_session(self) -> Any:
        if self._on_cuda:
            from fxfuse.sessions import session

            options = {"enable_cuda_graph": "1"} if self._graphs else {}
            return session(self._path, "cuda", threads=self._threads, cuda_options=options)
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        return self._runtime.InferenceSession(
            os.fspath(self._path), options, providers=["CPUExecutionProvider"]
        )

    def _bind(self, feed: Feed) -> None:
        if self._graphs:  # a captured graph is of one shape
            self._session = self._new_session()
        binding = self._session.io_binding()
        values = {name: self._on_device(array) for name, array in feed.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for output in self._session.get_outputs():
            binding.bind_output(output.name, "cuda", 0)
        if self._graphs:
            self._fix_outputs(binding, values)
        self._binding = binding

    def _fix_outputs(self, binding: Any, values: Mapping[str, Any]) -> None:
        """Give outputs places that stay, as a graph needs: those of one run without a graph."""
        plain = type(self)("cuda", self._threads, False)
        plain.open(self._path)
        inner = plain._session.io_binding()
        for name, value in values.items():
            inner.bind_ortvalue_input(name, value)
        for output in plain._session.get_outputs():
            inner.bind_output(output.name, "cuda", 0)
        plain._session.run_with_iobinding(inner)
        for output, value in zip(plain._session.get_outputs(), inner.get_outputs(), strict=True):
            binding.bind_ortvalue_output(output.name, value)

    def _on_device(self, array: Any) -> Any:
        value = self._runtime.OrtValue
        if array.dtype.name == "bfloat16":
            from onnx import TensorProto

            plain = array.view(np.uint16)
            return value.ortvalue_from_numpy_with_onnx_type(plain, TensorProto.BFLOAT16)
        return value.ortvalue_from_numpy(array, "cuda", 0)


def _drawn(tokens: int, size: int, dtype: str) -> np.ndarray[Any, Any]:
    """The stream before a chain, [1, tokens, size]."""
    drawn = np.random.default_rng(0).standard_normal((1, tokens, size), np.float32)
    if dtype == "bfloat16":
        import ml_dtypes

        return drawn.astype(ml_dtypes.bfloat16)
    return drawn.astype(dtype)
