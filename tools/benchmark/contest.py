"""The measurement: one contestant runs at a time, all take turns, and the order turns round each time.

Files of several models are written ahead, all at once, while nothing is timed; what does not fit in the time
left is told as not measured.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from fxfuse.timing.workers import Failure
from tools.benchmark.cases import Case, Settings
from tools.benchmark.crew import Crew, Process
from tools.benchmark.entries import entries
from tools.benchmark.files import Written
from tools.benchmark.turns import Clock, Model, Result

__all__ = ["Clock", "Result", "measure"]

AHEAD = 4
"""Models whose files are written at once, on CUDA; the machine has cores for them."""

FIRST = (1, 32)


def measure(
    cases: Sequence[Case],
    settings: Settings,
    progress: Callable[[str], None] = lambda _: None,
    clock: Clock | None = None,
) -> Iterator[Result]:
    """Run every case; a contestant that fails is told in the result and the others go on."""
    clock = clock or Clock()
    models = [list(same) for _, same in groupby(cases, key=lambda case: (case.model, case.dtype))]
    ahead = AHEAD if settings.device == "cuda" else 1
    remaining = iter(models)
    with TemporaryDirectory(ignore_cleanup_errors=True) as name, Crew(settings) as crew:
        while batch := list(islice(remaining, ahead)):
            yield from _measure_batch(batch, Path(name), settings, progress, clock, crew)


def _measure_batch(
    batch: list[list[Case]],
    root: Path,
    settings: Settings,
    progress: Callable[[str], None],
    clock: Clock,
    crew: Crew,
) -> Iterator[Result]:
    if clock.left < 0:
        for case in (case for same in batch for case in same):
            yield Result(case, not_measured="the time was over")
        return
    if settings.device == "cuda":
        crew.start(sorted({each.process for each in entries(batch[0][0], settings)}))
    progress(f"writing the files of {', '.join(same[0].model for same in batch)}")
    folders = [root / f"{same[0].model}-{same[0].dtype}" for same in batch]
    with ThreadPoolExecutor(len(batch)) as pool:
        limit = min(settings.writing, max(clock.left, 1.0))
        pending = [
            pool.submit(_write, same, folder, settings, limit)
            for same, folder in zip(batch, folders, strict=True)
        ]
        for future in pending:  # nothing is timed while one of them writes
            future.exception()
    for first in (True, False):
        for same, folder, future in zip(batch, folders, pending, strict=True):
            part = [case for case in same if (_is_first(case, settings)) == first]
            if not part:
                continue
            try:
                written = future.result()
            except Exception as error:
                why = f"its files could not be written: {error}"
                yield from (Result(case, not_measured=why) for case in part)
                continue
            yield from Model(part, folder, written, settings, progress, clock, crew).measure()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _is_first(case: Case, settings: Settings) -> bool:
    """On CUDA the numbers of tokens that matter most come first for all models: a run may be cut short."""
    return settings.device == "cpu" or case.tokens in FIRST


def _write(cases: list[Case], folder: Path, settings: Settings, limit: float) -> Written:
    """Export and fuse in a process of its own: what it held of memory and threads is gone before timing.

    Raises:
        Failure: Not even the references could be written.
    """
    folder.mkdir(exist_ok=True)
    found = {each.file: None for case in cases for each in entries(case, settings) if each.runtime == "onnx"}
    files = sorted((name for name in found if not name.startswith("chosen")), key=lambda name: "-" in name)
    case, until = cases[0], time.monotonic() + limit
    factory, quiet = "tools.benchmark.files:open_writer", not settings.verbose
    with (
        Process(factory, case.model, case.dtype, folder, settings, quiet=quiet) as writer,
        ThreadPoolExecutor(1) as pool,
    ):

        def ask(request: str, argument: object) -> Written:
            future = pool.submit(writer.ask, request, argument)
            try:
                answer: Written = future.result(max(0.1, until - time.monotonic()))
            except Late:
                writer.stop()
                raise Failure(f"writing took longer than {limit:.0f} s") from None
            return answer

        written = ask("start", [each.tokens for each in cases])
        for index, name in enumerate(files):
            try:
                written = ask("add", name)
            except Failure as failure:  # what is written already is used
                written.failures |= dict.fromkeys(files[index:], str(failure))
                break
    return written
