"""Where contestants run: a process for each, kept from one decision to the next."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fxfuse.passes.forms import Form
from fxfuse.timing import onnx_runs
from fxfuse.timing.machine import available_cores, available_memory
from fxfuse.timing.shape import Shape
from fxfuse.timing.target import Target
from fxfuse.timing.workers import Failure, Worker

__all__ = ["OnnxStage", "Stage", "TorchStage", "seats_for"]

_TORCH = "fxfuse.timing.torch_runs:make"  # by name, since it waits for torch
_LEAST_CALLS = 3
_SHARE = 0.7
"""Of the memory that is left, how much contestants may take together."""


class Stage(Protocol):
    """Opens chains under names and times them."""

    def seats(self, shape: Shape) -> int:
        """How many contestants there is memory for at a time."""

    def open(self, chains: Mapping[str, Form | None], shape: Shape) -> dict[str, str]:
        """Make the chains ready under their names, None the sequential one; why those fail that do."""

    def prepare(self, names: Sequence[str], shape: Shape, tokens: int) -> dict[str, str]:
        """Make them ready for calls on so many tokens; why those fail that do."""

    def round(self, name: str, seconds: float) -> list[float]:
        """The seconds of each call of one round.

        Raises:
            Failure: It fails.
        """

    def leave(self, names: Sequence[str]) -> None:
        """Give the memory of some back."""

    def close(self) -> None:
        """End all processes."""


class _Stage(ABC):
    """What both stages share: a process for each contestant."""

    overhead = 150 << 20
    copies = 2.0

    def __init__(self, target: Target) -> None:
        self.target = target
        self._workers: dict[str, Worker] = {}
        self._idle: list[Worker] = []

    @abstractmethod
    def _new_worker(self) -> Worker:
        """A process that can open chains."""

    @abstractmethod
    def _openings(self, shape: Shape, form: Form | None) -> tuple[Any, ...]:
        """What the process is told to open."""

    def seats(self, shape: Shape) -> int:
        """See `Stage.seats`."""
        return seats_for(int(self.copies * shape.nbytes) + self.overhead, self.target.device)

    def open(self, chains: Mapping[str, Form | None], shape: Shape) -> dict[str, str]:
        """See `Stage.open`."""
        for name in chains:
            if name not in self._workers:
                self._workers[name] = self._idle.pop() if self._idle else self._new_worker()
        asked = {name: ("open", *self._openings(shape, form)) for name, form in chains.items()}
        return self._ask(asked, 1 if self.target.device == "cuda" else available_cores())

    def prepare(self, names: Sequence[str], shape: Shape, tokens: int) -> dict[str, str]:
        """See `Stage.prepare`."""
        stream = (tokens, shape.hidden, shape.dtype)
        return self._ask(dict.fromkeys(names, ("prepare", stream)), available_cores())

    def round(self, name: str, seconds: float) -> list[float]:
        """See `Stage.round`."""
        times: list[float] = self._workers[name].ask("round", seconds, _LEAST_CALLS)
        return times

    def leave(self, names: Sequence[str]) -> None:
        """See `Stage.leave`."""
        for name in names:
            worker = self._workers.pop(name, None)
            if worker is None:  # it failed, and is gone
                continue
            try:
                worker.ask("close")
                self._idle.append(worker)
            except Failure:
                worker.end()

    def close(self) -> None:
        """See `Stage.close`."""
        workers = [*self._workers.values(), *self._idle]
        self._workers, self._idle = {}, []
        for worker in workers:  # they end together, before the first is waited for
            worker.dismiss()
        for worker in workers:
            worker.end()

    def _ask(self, requests: Mapping[str, tuple[Any, ...]], at_once: int) -> dict[str, str]:
        """Ask all, as many at once as there are cores; why those fail that do."""
        failures: dict[str, str] = {}
        names = list(requests)
        for start in range(0, len(names), at_once):
            some = names[start : start + at_once]
            for name in some:
                self._workers[name].begin(*requests[name])
            for name in some:
                try:
                    self._workers[name].finish()
                except Failure as failure:
                    failures[name] = str(failure)
        for name in failures:
            self._workers.pop(name).end()
        return failures


class OnnxStage(_Stage):
    """Chains as files in a temporary folder, run by ONNX Runtime."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._folder = tempfile.TemporaryDirectory(prefix="fxfuse-timing-")
        self._written: dict[tuple[Shape, Form | None], Path] = {}
        self._weights: dict[str, Any] = {}

    def close(self) -> None:
        """See `Stage.close`."""
        super().close()
        self._folder.cleanup()

    def _new_worker(self) -> Worker:
        target = self.target
        return Worker(onnx_runs.FACTORY, target.device, target.threads, target.cuda_graphs, quiet=True)

    def _openings(self, shape: Shape, form: Form | None) -> tuple[Any, ...]:
        from fxfuse.timing.chains import write_chain
        from fxfuse.timing.weights import WeightFile

        if (shape, form) not in self._written:
            folder = Path(self._folder.name)
            path = folder / f"{len(self._written)}.onnx"
            weights = self._weights.setdefault(shape.dtype, WeightFile(folder, shape.dtype))
            write_chain(shape, form, weights, path)
            self._written[shape, form] = path
        return (str(self._written[shape, form]),)


class TorchStage(_Stage):
    """Chains as modules, compiled by a backend of torch.compile."""

    overhead = 500 << 20
    copies = 1.2

    def __init__(self, target: Target, inner: str, options: Mapping[str, Any]) -> None:
        super().__init__(target)
        self._inner, self._options = inner, dict(options)

    def _new_worker(self) -> Worker:
        target = self.target
        return Worker(_TORCH, self._inner, self._options, target.device, target.threads, quiet=True)

    def _openings(self, shape: Shape, form: Form | None) -> tuple[Any, ...]:
        return shape, form


def seats_for(size: int, device: str) -> int:
    """How many contestants of `size` bytes there is memory for."""
    left = available_memory(device)
    return 64 if left is None else int(_SHARE * left / max(size, 1))
