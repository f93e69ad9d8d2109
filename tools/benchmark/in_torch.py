"""Contestants in torch: eager, or compiled anew for each shape; on CUDA also captured in a CUDA graph."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fxfuse
from tools.benchmark.cases import Settings
from tools.benchmark.entries import Entry
from tools.benchmark.references import answers, layers_of
from tools.benchmark.subjects import build, without_ffns

__all__ = ["Replay", "TorchContestant"]

WARM_UP = 3


class TorchContestant:
    """A torch module. `groups`: how many blocks each fused group holds."""

    def __init__(self, entry: Entry, model: str, dtype: str, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        self.groups: list[int] = []
        self.notes: list[str] = []
        self.expected: NDArray[Any] | None = None
        self._entry, self._settings = entry, settings
        self._device, self._dtype = settings.device, getattr(torch, dtype)
        self._model = build(model, settings.device, self._dtype)
        if entry.form == "bound":
            self._model = without_ffns(self._model)
        self._run: Any = None
        self._x: Any = None

    def prepare(self, x: NDArray[Any], shape: tuple[int, ...]) -> None:
        """Compile for the input's shape, after what was compiled for the last one is gone."""
        self.forget()
        tensor = torch.from_numpy(x)
        self._x = tensor.to(self._device, self._dtype if tensor.is_floating_point() else None)
        self._run = self._compile(x.shape[1])
        for _ in range(WARM_UP if self._device == "cuda" else 1):
            self.call()
            self.wait()
        if self._entry.is_fused:
            self.groups = self._groups_fused()
        if self._entry.form == "chosen":  # it may have fused only parts of a chain
            (found,) = answers(self._model, [tensor], layers_of(fxfuse.reports()[-1].groups))
            self.expected = found["parallel"].cpu().numpy()

    def forget(self) -> None:
        """Drop what was compiled."""
        self._run = self._x = None
        self.notes = []
        torch._dynamo.reset()
        if self._device == "cuda":
            with contextlib.suppress(Exception):
                from torch._inductor import cudagraph_trees

                cudagraph_trees.reset_cudagraph_trees()
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def _compile(self, tokens: int) -> Any:
        mode = {"autotune": "max-autotune-no-cudagraphs", "graphs": "reduce-overhead"}.get(self._entry.mode)
        if self._entry.mode == "eager" and not self._entry.is_fused:
            return self._model
        if not self._entry.is_fused:
            return torch.compile(self._model, dynamic=False, fullgraph=True, mode=mode)
        # torch.compile takes a mode or options, not both: the options are all that a mode stands for.
        options: dict[str, Any] = {"min_sqnr": None}
        if self._entry.mode == "eager":
            options["inner"] = "eager"
        elif mode is not None:
            import torch._inductor as inductor

            options["inner_options"] = dict(inductor.list_mode_options(mode))
        if self._entry.form == "kernel":
            options["form"] = "kernel"
        if self._entry.form == "chosen":
            options["target"] = {
                "tokens": (tokens,), "device": self._device, "threads": self._settings.threads
            }  # fmt: skip
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
        found: NDArray[np.float64] = self.call().double().cpu().numpy()
        return found

    def _groups_fused(self) -> list[int]:
        """The groups of the compilation just made.

        Raises:
            FxfuseError: There are none, so that a time would be that of the unfused form.
        """
        report = fxfuse.reports()[-1]
        if not report.groups:
            why = "declined: " if self._entry.form == "chosen" else ""
            raise fxfuse.FxfuseError(why + (report.error or report.summary()))
        forms = [str(form) for group in report.groups if (form := getattr(group, "form", None))]
        self.notes += [f"form: {form}" for form in forms]
        return [len(group.blocks) for group in report.groups]


class Replay:
    """A compiled module captured once in a CUDA graph by hand, as inference servers do, and replayed."""

    def __init__(self, base: TorchContestant) -> None:
        self._base = base
        self._graph: Any = None
        self._output: Any = None
        self.notes: list[str] = []

    @property
    def groups(self) -> list[int]:
        """The base's groups."""
        return self._base.groups

    def prepare(self, x: NDArray[Any], shape: tuple[int, ...]) -> None:
        """Capture the base, which is compiled for the input already."""
        self._graph = self._output = None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._base.call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._output = self._base.call()
        self._graph = graph
        self.call()
        self.wait()

    def forget(self) -> None:
        """Drop the graph."""
        self._graph = self._output = None

    def call(self) -> Any:
        """Replay."""
        self._graph.replay()
        return self._output

    def wait(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize()

    def answer(self) -> NDArray[np.float64]:
        """Replay into a poisoned output and fetch it."""
        self._output.fill_(float("nan"))
        self.call()
        self.wait()
        found: NDArray[np.float64] = self._output.double().cpu().numpy()
        return found
