"""The four corners: fused or not, quantised or not; the speed and the loss of each, on one model.

Files are written in a process of its own; then each file has a process, and all take turns.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fxfuse.timing import onnx_runs
from fxfuse.timing.rounds import Ratio, Timing
from fxfuse.timing.workers import Worker
from tools.benchmark.cases import shape_of

__all__ = ["FORMS", "KINDS", "Corners", "Pace", "draw", "measure", "named"]

KINDS = ("float", "int8", "int4")
FORMS = tuple(f"{form}-{kind}" for form in ("unfused", "fused") for kind in KINDS)
"""The contestants; "unfused-float" is what every ratio is to."""


@dataclass(frozen=True)
class Pace:
    """How to measure: `pause` seconds after each turn, until the threads sleep; `held_out` bytes of text."""

    threads: int
    rounds: int = 7
    seconds: float = 0.3
    pause: float = 0.1
    held_out: int = 51200


@dataclass
class Corners:
    """What was found of one model: facts of each file, timings by number of tokens and form."""

    model: str
    groups: list[int]
    loss_on: str
    forms: dict[str, dict[str, Any]]
    timings: dict[int, dict[str, Timing]] = field(default_factory=dict)

    def ratio(self, tokens: int, form: str, to: str = "unfused-float") -> Ratio:
        """Time of `to` / time of `form`: above 1 `form` is faster."""
        return Ratio.of(self.timings[tokens][to], self.timings[tokens][form])

    def fusing(self, tokens: int, kind: str) -> Ratio:
        """What fusing alone makes of weights of one kind."""
        return self.ratio(tokens, f"fused-{kind}", f"unfused-{kind}")


def measure(
    model: str, lengths: Sequence[int], pace: Pace, progress: Callable[[str], None] = lambda _: None
) -> Corners:
    """Write the six files of a model, judge them and time them."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        progress(f"{model}: exporting, fusing and quantising")
        with Worker("tools.benchmark.corner_files:open_writer", model, folder, pace, quiet=True) as writer:
            groups, loss_on, forms = writer.ask("write")
        found = Corners(model, groups, loss_on, forms)
        with contextlib.ExitStack() as stack:
            arguments = ("cpu", pace.threads, False)
            workers = {
                form: stack.enter_context(Worker(onnx_runs.FACTORY, *arguments, quiet=True)) for form in forms
            }
            for worker in workers.values():  # they end together, before the first is waited for
                stack.callback(worker.dismiss)
            for form, worker in workers.items():
                progress(f"{model}: loading {form}")
                worker.ask("open", str(folder / f"{form}.onnx"))
            for tokens in lengths:
                found.timings[tokens] = _time(model, tokens, workers, folder, pace, progress)
    return found


def _time(
    model: str,
    tokens: int,
    workers: Mapping[str, Worker],
    folder: Path,
    pace: Pace,
    progress: Callable[[str], None],
) -> dict[str, Timing]:
    feed = draw(model, tokens)
    for worker in workers.values():
        worker.ask("prepare", feed)
    rounds: dict[str, list[list[float]]] = {form: [] for form in workers}
    for index in range(pace.rounds):
        progress(f"{model}, {tokens} tokens: round {index + 1} of {pace.rounds}")
        for form in list(workers)[:: -1 if index % 2 else 1]:
            rounds[form].append(workers[form].ask("round", pace.seconds))
            time.sleep(pace.pause)
    return {form: Timing.of(times) for form, times in rounds.items()}


def draw(model: str, tokens: int) -> dict[str, np.ndarray[Any, Any]]:
    """An input of the model's file: token ids, or a residual stream."""
    random = np.random.default_rng(tokens)
    if model == "demo":
        return {"input_ids": random.integers(0, 256, (1, tokens))}
    shape = shape_of(model)
    assert shape is not None
    return {"x": random.standard_normal((1, tokens, shape.hidden), np.float32)}


def named(form: str) -> str:
    """A form as a reader knows it."""
    fused, _, kind = form.partition("-")
    return f"{'fp32' if kind == 'float' else kind} {fused}"
