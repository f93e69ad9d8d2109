"""The inside of a contestant's process: the models it holds, and the requests it answers."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.benchmark.cases import Settings
from tools.benchmark.entries import Entry, chosen_file

__all__ = ["Host", "open_host", "time_calls"]

LEAST = 3
"""Samples of a round at least; one, where a single call takes longer than the round."""

SAMPLE = 2e-3
"""On a GPU calls are queued until a sample is about that long, and waited for once."""

MOST_QUEUED = 50


def open_host(settings: Settings) -> Host:
    """The factory of a contestant's process."""
    return Host(settings)


class Host:
    """Holds the contestants of one process by name: a compiled model, and the same one as a CUDA graph."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held: dict[str, Any] = {}
        if settings.device == "cuda":
            import torch

            torch.zeros(1, device="cuda")

    def open(self, entry: Entry, model: str, dtype: str, folder: Path) -> None:
        """Build a contestant; what an earlier model left is closed first by `close`."""
        self._folder, self._dtype = folder, dtype
        with told_in_one_line():
            self._open(entry, model, dtype, folder)

    def _open(self, entry: Entry, model: str, dtype: str, folder: Path) -> None:
        if entry.runtime == "torch":
            from tools.benchmark.in_torch import Replay, TorchContestant

            if entry.mode == "replay":
                if entry.host not in self._held:
                    raise RuntimeError(f"{entry.host} could not be opened")
                self._held[entry.name] = Replay(self._held[entry.host])
            else:
                self._held[entry.name] = TorchContestant(entry, model, dtype, self._settings)
            return
        from tools.benchmark.in_onnxruntime import OnnxContestant, OnnxOnCuda

        path = folder / entry.file
        if self._settings.device == "cuda":
            self._held[entry.name] = OnnxOnCuda(path, dtype, entry.mode == "graph")
        else:
            self._held[entry.name] = OnnxContestant(path, self._settings)

    def prepare(self, entry: Entry, tokens: int) -> tuple[float, list[int], list[str], float]:
        """Compile, check the answer, warm up: its relative error, groups, notes and the seconds it took."""
        from tools.benchmark.references import Reference

        if entry.name not in self._held:
            raise RuntimeError("the process that held it has ended")
        begin = time.perf_counter()
        reference = Reference(self._folder / f"{tokens}.npz")
        held = self._held[entry.name]
        with told_in_one_line():
            held.prepare(reference.input, reference.shape)
        form = "parallel" if entry.is_fused else "bound" if entry.form == "bound" else "sequential"
        kind = self._dtype if entry.weights == "float" else entry.weights
        if entry.form == "chosen":
            form = reference.add("chosen", self._chosen(entry, tokens))
        error = reference.check(held.answer(), form, kind)
        self.time(entry, 0.0)
        return error, held.groups, held.notes, round(time.perf_counter() - begin, 2)

    def _chosen(self, entry: Entry, tokens: int) -> Any:
        """What the chosen form must give: it may hold several groups, or only a part of a chain."""
        import numpy as np

        if entry.runtime == "torch":
            return self._held[entry.name].expected
        with np.load(self._folder / f"{chosen_file(tokens, entry.weights)}.npz") as arrays:
            return arrays["expected"]

    def time(self, entry: Entry, seconds: float) -> list[float]:
        """Times of single calls in one round."""
        held = self._held[entry.name]
        return time_calls(held.call, held.wait, seconds, queued=self._settings.device == "cuda")

    def waited(self, entry: Entry) -> float:
        """The median time of a call that is waited for before the next."""
        held = self._held[entry.name]
        times = time_calls(held.call, held.wait, 0.02)
        return sorted(times)[len(times) // 2]

    def memory(self) -> float:
        """GB that this process holds: of the GPU's memory through torch, or resident."""
        if self._settings.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() / 1e9
        pages = (
            int(Path("/proc/self/statm").read_text().split()[1]) if os.path.exists("/proc/self/statm") else 0
        )
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e9

    def close(self) -> None:
        """Drop everything that is held."""
        for held in reversed(list(self._held.values())):
            held.forget()
        self._held.clear()
        gc.collect()
        if self._settings.device == "cuda":
            import torch

            torch.cuda.empty_cache()


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    """What compilers raise has its reason in a later line than the first."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kept = " | ".join(lines[:4])[:400]
        kind = type(type(error).__name__, (RuntimeError,), {})  # its own class may want other arguments
        raise kind(kept) from error


def time_calls(
    call: Callable[[], Any], wait: Callable[[], None], seconds: float, *, queued: bool = False
) -> list[float]:
    """Times of single calls for `seconds` and `LEAST` at least; a third of that warms up before.

    Where they are `queued`, calls are given to the GPU one after another and waited for once: each time is
    the mean of such a run.
    """
    gc.collect()
    gc.disable()
    try:
        count = 1
        first = _samples(call, wait, seconds / 3, 1, 1)
        if queued:
            count = max(1, min(MOST_QUEUED, int(SAMPLE / min(first))))
        least = 1 if min(first) > seconds > 0 else LEAST
        return _samples(call, wait, seconds, least, count)
    finally:
        gc.enable()


def _samples(
    call: Callable[[], Any], wait: Callable[[], None], seconds: float, least: int, count: int
) -> list[float]:
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        times.append((time.perf_counter() - start) / count)
    return times
