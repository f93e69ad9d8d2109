"""The contestants: each holds a model ready to run, and makes a plain call of it on one case."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fxfuse
from tools.benchmark.cases import Settings, dtype_of
from tools.benchmark.subjects import build

__all__ = ["Contestant", "open_contestant"]


class Contestant(ABC):
    """A model in one runtime. Timed is `call` then `wait`, until the answer is there."""

    groups: list[int]
    """How many blocks each fused group holds; empty where nothing is fused."""

    @abstractmethod
    def prepare(self, x: NDArray[Any]) -> None:
        """Make ready for calls on this input."""

    @abstractmethod
    def call(self) -> Any:
        """Run once on the input; on a GPU the work may still be under way on return."""

    @abstractmethod
    def wait(self) -> None:
        """Return when the device is idle."""

    @abstractmethod
    def answer(self) -> NDArray[np.float64]:
        """Run once and fetch the output."""


def open_contestant(name: str, model: str, folder: Path, settings: Settings) -> Contestant:
    """Open a contestant by name; ONNX files are read from `folder`."""
    if name.startswith("onnx"):
        return OnnxContestant(folder / f"{name}.onnx", settings)
    return TorchContestant(name, model, settings)


class TorchContestant(Contestant):
    """A torch module, eager or compiled anew for each shape."""

    def __init__(self, name: str, model: str, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self.groups = []
        self._name, self._device = name, settings.device
        self._dtype = getattr(torch, dtype_of(name, settings.device))
        self._model = build(model).to(self._device, self._dtype)
        self._run: Any = self._model

    def prepare(self, x: NDArray[Any]) -> None:
        """Compile for the input's shape, after what was compiled for the last one is gone."""
        self._run = self._x = None
        torch._dynamo.reset()
        gc.collect()
        tensor = torch.from_numpy(x)
        self._x = tensor.to(self._device, self._dtype if tensor.is_floating_point() else None)
        self._run = self._compile()
        self.call()
        if self._name.startswith("fxfuse"):
            self.groups = _groups_fused()

    def _compile(self) -> Any:
        backend, _, graphs = self._name.partition("-")
        if backend == "eager":
            return self._model
        if backend == "inductor":
            mode = "reduce-overhead" if graphs else None
            return torch.compile(self._model, dynamic=False, fullgraph=True, mode=mode)
        # torch.compile takes a mode or options, not both: this option is all that reduce-overhead stands for.
        inner = {"triton.cudagraphs": True} if graphs else {}
        options = {"min_sqnr": None, "inner_options": inner}
        return torch.compile(
            self._model, backend=fxfuse.backend, dynamic=False, fullgraph=True, options=options
        )

    def call(self) -> Any:
        """Run once, without gradients."""
        with torch.no_grad():
            return self._run(self._x)

    def wait(self) -> None:
        """Wait for the GPU, where there is one."""
        if self._device == "cuda":
            torch.cuda.synchronize()

    def answer(self) -> NDArray[np.float64]:
        """Run once and fetch the output."""
        return self.call().double().cpu().numpy()


class OnnxContestant(Contestant):
    """An ONNX file in ONNX Runtime; on CUDA, input and output stay in the GPU's memory."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.groups = []
        self._on_cuda = settings.device == "cuda"
        self._session = fxfuse.session(path, settings.device, threads=settings.threads)
        (described,) = self._session.get_inputs()
        self._name, self._is_half = described.name, described.type == "tensor(float16)"

    def prepare(self, x: NDArray[Any]) -> None:
        """Bind the input."""
        x = x.astype(np.float16) if self._is_half else x
        self._feed = {self._name: x}
        if self._on_cuda:
            import onnxruntime

            self._binding = self._session.io_binding()
            on_device = onnxruntime.OrtValue.ortvalue_from_numpy(x, "cuda", 0)
            self._binding.bind_ortvalue_input(self._name, on_device)
            self._binding.bind_output(self._session.get_outputs()[0].name, "cuda", 0)

    def call(self) -> Any:
        """Run once."""
        if self._on_cuda:
            return self._session.run_with_iobinding(self._binding)
        return self._session.run(None, self._feed)

    def wait(self) -> None:
        """Wait for the GPU, where there is one."""
        if self._on_cuda:
            self._binding.synchronize_outputs()

    def answer(self) -> NDArray[np.float64]:
        """Run once and fetch the output."""
        outputs = self.call()
        if self._on_cuda:
            self.wait()
            outputs = self._binding.copy_outputs_to_cpu()
        return outputs[0].astype(np.float64)


def _groups_fused() -> list[int]:
    """The groups of the compilation just made.

    Raises:
        FxfuseError: There are none, so that a time would be that of the unfused form.
    """
    report = fxfuse.reports()[-1]
    if not report.groups:
        raise fxfuse.FxfuseError(report.error or report.summary())
    return [len(group.blocks) for group in report.groups]
