"""The measurement: one contestant runs at a time, all take turns, and the order turns round each time.

Files of several models are written ahead, all at once, while nothing is timed; what does not fit in the time
left is told as not measured.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fxfuse.timing.rounds import Ratio, Timing
from fxfuse.timing.workers import Failure
from tools.benchmark.cases import Case, Settings
from tools.benchmark.crew import Crew, Process
from tools.benchmark.entries import Entry, Pair, entries, pairs, ratio_of
from tools.benchmark.files import Written
from tools.benchmark.memory import available, fitting
from tools.benchmark.subjects import Size

__all__ = ["Result", "measure"]

AHEAD = 4
"""Models whose files are written at once, on CUDA; the machine has cores for them."""

FIRST = (1, 32)


@dataclass
class Result:
    """What was measured on one case, by contestant."""

    case: Case
    entries: list[Entry] = field(default_factory=list)
    size: Size | None = None
    timings: dict[str, Timing] = field(default_factory=dict)
    waited_us: dict[str, float] = field(default_factory=dict)
    prepared_s: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    relative_errors: dict[str, float] = field(default_factory=dict)
    groups: dict[str, list[int]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    not_measured: str | None = None

    @property
    def pairs(self) -> list[Pair]:
        """The ratios that this case can have."""
        return pairs(self.entries)

    @property
    def ratios(self) -> dict[str, Ratio]:
        """The ratio of each pair whose two sides were timed."""
        found = {pair.title: ratio_of(pair, self.timings) for pair in self.pairs}
        return {title: ratio for title, ratio in found.items() if ratio is not None}


@dataclass
class Clock:
    """The time that is left of the measurement."""

    until: float = float("inf")

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()


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


class Model:
    """One model: its contestants are opened once and then run at every number of tokens."""

    def __init__(
        self, cases: list[Case], folder: Path, written: Written, settings: Settings,
        progress: Callable[[str], None], clock: Clock, crew: Crew,
    ) -> None:  # fmt: skip
        self._cases, self._folder, self._written, self._settings = cases, folder, written, settings
        self._progress, self._clock, self._crew = progress, clock, crew
        self._opened: set[str] = set()
        self._broken: dict[str, str] = {}
        self._last = 0.0
        self._room = available(settings.device)

    def measure(self) -> Iterator[Result]:
        """Every case, as long as there is time."""
        try:
            for case in self._cases:
                if self._clock.left < self._last:
                    yield Result(case, size=self._written.size, not_measured="the time was over")
                    continue
                begin = time.monotonic()
                yield self._measure(case)
                self._last = 0.7 * (time.monotonic() - begin)
        finally:
            if self._settings.device == "cuda":
                self._all(list(self._opened_processes()), "close")
            else:
                self._crew.close()

    def _measure(self, case: Case) -> Result:
        result = Result(case, entries(case, self._settings), self._written.size)
        result.failures |= self._broken
        result.notes |= {"files": self._written.notes} if self._written.notes else {}
        for entry in result.entries:
            if entry.runtime == "onnx" and (why := self._written.failures.get(entry.file)):
                result.failures[entry.name] = why
            if entry.file in self._written.groups and entry.runtime == "onnx":
                result.groups[entry.name] = self._written.groups[entry.file]
        kept, dropped = fitting(result.entries, case, self._written.size, self._settings, self._room)
        result.failures |= {each.name: why for each, why in dropped.items()}
        self._choose(case, result)
        ready = [each for each in kept if each.name not in result.failures | result.declined]
        self._progress(f"{case}: building")
        self._opened = {
            e.name for e in result.entries if e.name in self._opened and self._crew.has(e.process)
        }
        self._open([each for each in ready if each.name not in self._opened], case, result)
        self._progress(f"{case}: compiling and checking")
        ready = [each for each in ready if each.name not in result.failures]
        self._prepare(ready, case, result)
        ready = [each for each in ready if each.name not in result.failures | result.declined]
        self._rounds(ready, case, result)
        return result

    def _choose(self, case: Case, result: Result) -> None:
        """Have the form with the best time at this number of tokens written."""
        chosen = [e for e in result.entries if e.form == "chosen" and e.runtime == "onnx"]
        if not chosen:
            return
        self._progress(f"{case}: choosing the form")
        names = [e.name for e in chosen]
        try:
            found = _choose(case, self._folder, self._settings)
        except Failure as failure:
            result.failures |= dict.fromkeys(names, str(failure))
            return
        for name in names:
            if why := found.failures.get("chosen.onnx"):
                result.declined[name] = why
            else:
                result.groups[name] = found.groups["chosen.onnx"]
                result.notes[name] = found.notes
            self._opened.discard(name)  # another file than at the last number of tokens
        path = self._folder / f"chosen-{case.tokens}.onnx"
        if path.exists():
            link = self._folder / "chosen.onnx"
            link.unlink(missing_ok=True)
            link.hardlink_to(path)

    def _open(self, found: list[Entry], case: Case, result: Result) -> None:
        def arguments(entry: Entry) -> tuple[Any, ...]:
            return (entry, case.model, case.dtype, self._folder)

        self._crew.start(sorted({entry.process for entry in found}))
        for entry, answer in self._each(found, "open", arguments):
            if isinstance(answer, Failure):
                self._broken[entry.name] = result.failures[entry.name] = str(answer)
            else:
                self._opened.add(entry.name)

    def _prepare(self, found: list[Entry], case: Case, result: Result) -> None:
        self._prepare_once(found, case, result)
        lost = {entry.process for entry in found if not self._crew.has(entry.process)}
        again = [e for e in found if e.process in lost and e.name in result.relative_errors]
        if again:  # capturing a CUDA graph took the process with it: once more without
            self._opened -= {e.name for e in result.entries if e.process in lost}
            self._open(again, case, result)
            self._prepare_once([e for e in again if e.name not in result.failures], case, result)

    def _prepare_once(self, found: list[Entry], case: Case, result: Result) -> None:
        for entry, answer in self._each(found, "prepare", lambda entry: (entry, case.tokens)):
            if isinstance(answer, Failure):
                declined = "declined: " in str(answer)
                (result.declined if declined else result.failures)[entry.name] = str(answer)
                continue
            result.relative_errors[entry.name], groups, notes, took = answer
            result.prepared_s[entry.name] = took
            result.groups |= {entry.name: groups} if groups else {}
            result.notes |= {entry.name: notes} if notes else {}

    def _rounds(self, found: list[Entry], case: Case, result: Result) -> None:
        times: dict[str, list[list[float]]] = {entry.name: [] for entry in found}
        for index in range(self._settings.rounds):
            self._progress(f"{case}: round {index + 1} of {self._settings.rounds}")
            for entry in found[:: -1 if index % 2 else 1]:
                answer = self._ask(result, entry, "time", entry, self._settings.seconds)
                if answer is not None:
                    times[entry.name].append(answer)
                    time.sleep(self._settings.pause)
        if self._settings.device == "cuda":
            for entry in found:
                answer = self._ask(result, entry, "waited", entry)
                if answer is not None:
                    result.waited_us[entry.name] = 1e6 * answer
        finished = {name: each for name, each in times.items() if name not in result.failures and each}
        result.timings = {name: Timing.of(each) for name, each in finished.items()}

    def _ask(self, result: Result, entry: Entry, request: str, *arguments: Any) -> Any:
        """The answer; None once the contestant has failed."""
        if entry.name in result.failures:
            return None
        try:
            return self._crew.ask(entry.process, request, *arguments, patience=60.0)
        except Failure as failure:
            result.failures[entry.name] = str(failure)
            self._opened -= {e.name for e in result.entries if e.process == entry.process}
            return None

    def _each(
        self, found: list[Entry], request: str, arguments: Callable[[Entry], tuple[Any, ...]]
    ) -> list[tuple[Entry, Any]]:
        """Ask every entry at once on CUDA, where cores are many; one after another on a CPU."""
        by_process: dict[str, list[Entry]] = {}
        for entry in found:
            by_process.setdefault(entry.process, []).append(entry)
        wanted = {
            process: [(request, arguments(entry)) for entry in same] for process, same in by_process.items()
        }
        if self._settings.device == "cuda":
            answers = self._crew.ask_all(wanted, tell=self._tell)
        else:
            answers = {}
            for process, requests in wanted.items():
                answers |= self._crew.ask_all({process: requests}, tell=self._tell)
        return [
            pair for process, same in by_process.items() for pair in zip(same, answers[process], strict=True)
        ]

    def _tell(self, process: str, answer: Any) -> None:
        """One line for each answer that was long in coming, and for each failure."""
        if isinstance(answer, Failure):
            self._progress(f"  {process}: {answer}")
        elif answer is not None:
            self._progress(f"  {process}: ready in {answer[-1]:.0f} s")

    def _opened_processes(self) -> set[str]:
        every = [each for case in self._cases for each in entries(case, self._settings)]
        opened = {each.process for each in every if each.name in self._opened}
        return {process for process in opened if self._crew.has(process)}

    def _all(self, processes: Sequence[str], request: str) -> Mapping[str, list[Any]]:
        return self._crew.ask_all({process: [(request, ())] for process in processes}, patience=60.0)


def _choose(case: Case, folder: Path, settings: Settings) -> Written:
    factory = "tools.benchmark.files:open_writer"
    with Process(factory, case.model, case.dtype, folder, settings, quiet=not settings.verbose) as writer:
        answer: Written = writer.ask("choose", case.tokens)
    return answer
