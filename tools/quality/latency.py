"""Latency of ONNX files side by side: each in a process of its own, which take turns.

In one process sessions would share the cache and the memory's good places, and the first would win.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fxfuse.timing.workers import spawn, time_round

__all__ = ["Latency", "time_files"]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: the median over all rounds, and the median ratio to the first file's."""

    median_ms: float
    ratio: float


def time_files(
    paths: Sequence[Path], ids: np.ndarray[Any, Any], *, rounds: int = 7, seconds: float = 0.5
) -> list[Latency]:
    """Time every file on `ids` [batch, tokens], on the CPU with one thread, in turn."""
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for _ in paths]
        times: list[list[float]] = [[] for _ in paths]
        for index in range(rounds):
            for place in range(len(paths))[:: -1 if index % 2 else 1]:
                found = pools[place].submit(_round, paths[place], ids, seconds).result()
                times[place].append(float(np.median(found)))
    first = np.asarray(times[0])
    return [Latency(1e3 * float(np.median(t)), float(np.median(first / np.asarray(t)))) for t in times]


_sessions: dict[Path, Any] = {}


def _round(path: Path, ids: np.ndarray[Any, Any], seconds: float) -> list[float]:
    from fxfuse.sessions import session

    if path not in _sessions:
        _sessions[path] = session(path, "cpu", threads=1)
    opened = _sessions[path]
    feed = {opened.get_inputs()[0].name: ids}
    return time_round(lambda: opened.run(None, feed), lambda: None, seconds)
