"""The measurement: one contestant runs at a time, all take turns, and the order turns round each time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fxfuse.timing.rounds import Ratio, Timing
from fxfuse.timing.workers import Failure, Worker, spawn
from tools.benchmark.cases import PAIRS, Case, Settings, contestants_on
from tools.benchmark.hosting import FACTORY

__all__ = ["Result", "measure"]


@dataclass
class Result:
    """What was measured on one case, by contestant; ratios by the title of the pair."""

    case: Case
    timings: dict[str, Timing] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    relative_errors: dict[str, float] = field(default_factory=dict)
    groups: dict[str, list[int]] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, Ratio]:
        """The ratio of each pair whose two contestants were timed."""
        return {
            pair.title: Ratio.of(self.timings[pair.unfused], self.timings[pair.fused])
            for pair in PAIRS
            if pair.unfused in self.timings and pair.fused in self.timings
        }


def measure(
    cases: Sequence[Case], settings: Settings, progress: Callable[[str], None] = lambda _: None
) -> Iterator[Result]:
    """Run every case; a contestant that fails is told in the result and the others go on."""
    for model, same in groupby(cases, key=lambda case: case.model):
        yield from _measure_model(model, list(same), settings, progress)


def _measure_model(
    model: str, cases: list[Case], settings: Settings, progress: Callable[[str], None]
) -> Iterator[Result]:
    with TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        progress(f"{model}: exporting and fusing")
        groups = _write_files(model, [case.tokens for case in cases], folder, settings)
        workers = {
            each: stack.enter_context(Worker(FACTORY, each, model, folder, settings))
            for each in contestants_on(settings.device)
        }
        for worker in workers.values():  # they end together, before the first is waited for
            stack.callback(worker.dismiss)
        progress(f"{model}: building")
        broken: dict[str, str] = {}
        for each, worker in workers.items():
            _try(broken, each, worker, "open")
        for case in cases:
            result = Result(case, failures=dict(broken), groups={"onnx-fused": groups})
            ready = {each: worker for each, worker in workers.items() if each not in broken}
            _measure_case(result, ready, settings, progress)
            yield result


def _measure_case(
    result: Result, workers: Mapping[str, Worker], settings: Settings, progress: Callable[[str], None]
) -> None:
    for name, worker in workers.items():
        progress(f"{result.case}: compiling and checking, {name}")
        prepared = _try(result.failures, name, worker, "prepare", result.case.tokens)
        if prepared is not None:
            result.relative_errors[name], groups = prepared
            result.groups |= {name: groups} if groups else {}
    rounds: dict[str, list[list[float]]] = {name: [] for name in workers}
    for index in range(settings.rounds):
        progress(f"{result.case}: round {index + 1} of {settings.rounds}")
        for name in list(workers)[:: -1 if index % 2 else 1]:
            times = _try(result.failures, name, workers[name], "round", settings.seconds)
            if times is not None:
                rounds[name].append(times)
            time.sleep(settings.pause)
    finished = {name: times for name, times in rounds.items() if name not in result.failures}
    result.timings = {name: Timing.of(times) for name, times in finished.items()}


def _try(failures: dict[str, str], name: str, worker: Worker, *request: object) -> Any:
    """The worker's answer; None once the contestant has failed."""
    if name in failures:
        return None
    try:
        return worker.ask(*request)
    except Failure as failure:
        failures[name] = str(failure)
        return None


def _write_files(model: str, lengths: Sequence[int], folder: Path, settings: Settings) -> list[int]:
    """Export and fuse in a process of its own: what it held of memory and threads is gone before timing."""
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_write_files_here, model, lengths, folder, settings).result()


def _write_files_here(model: str, lengths: Sequence[int], folder: Path, settings: Settings) -> list[int]:
    from tools.benchmark.files import write_files

    return write_files(model, lengths, folder, settings)
