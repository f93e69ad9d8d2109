"""The contest of one model: its contestants are seated in processes, take turns, and are seated once more.

A process keeps the memory it was given, better or worse, and who comes first gets the best: in the second
seating they come in the opposite order, to new processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxfuse.timing.rounds import Ratio, Timing
from fxfuse.timing.workers import Failure
from tools.benchmark.cases import Case, Settings
from tools.benchmark.crew import Crew, Process
from tools.benchmark.entries import Entry, Pair, chosen_file, entries, pairs, ratio_of
from tools.benchmark.files import Written
from tools.benchmark.memory import available, fitting
from tools.benchmark.subjects import Size

__all__ = ["Clock", "Model", "Result"]


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


class Model:
    """One model: in every seating its contestants are opened once and then run at every number of tokens."""

    def __init__(
        self, cases: list[Case], folder: Path, written: Written, settings: Settings,
        progress: Callable[[str], None], clock: Clock, crew: Crew,
    ) -> None:  # fmt: skip
        self._cases, self._folder, self._written, self._settings = cases, folder, written, settings
        self._progress, self._clock, self._crew = progress, clock, crew
        self._opened: set[str] = set()
        self._broken: dict[str, str] = {}
        self._seated: dict[Case, tuple[Result, dict[str, list[list[float]]]]] = {}
        self._last = 0.0
        self._room = available(settings.device)

    def measure(self) -> Iterator[Result]:
        """Every case, as long as there is time; each once it has been through all seatings."""
        for seating in range(self._settings.seatings):
            last = seating == self._settings.seatings - 1
            try:
                for case in self._cases:
                    result = self._timed(case, seating)
                    if last:
                        yield result
            finally:
                self._leave()

    def _timed(self, case: Case, seating: int) -> Result:
        if self._clock.left < self._last:
            late = Result(case, size=self._written.size, not_measured="the time was over")
            return self._seated[case][0] if case in self._seated else late
        begin = time.monotonic()
        result = self._measure(case, seating)
        self._last = 0.7 * (time.monotonic() - begin)
        return result

    def _leave(self) -> None:
        """Everything that was opened is gone: on a CPU with its process."""
        if self._settings.device == "cuda":
            self._all(list(self._opened_processes()), "close")
        else:
            self._crew.close()
        self._opened.clear()

    def _measure(self, case: Case, seating: int) -> Result:
        if seating == 0:
            self._seated[case] = self._expected(case), {}
        result, times = self._seated[case]
        self._use_chosen(case, result)
        ready = self._ready(result)[:: -1 if seating % 2 else 1]
        self._progress(f"{case}: building" + (f", seating {seating + 1}" if seating else ""))
        self._opened = {
            e.name for e in result.entries if e.name in self._opened and self._crew.has(e.process)
        }
        self._open([each for each in ready if each.name not in self._opened], case, result)
        self._progress(f"{case}: compiling and checking")
        self._prepare([each for each in ready if each.name not in result.failures], case, result)
        self._rounds(self._ready(result), case, result, times)
        return result

    def _expected(self, case: Case) -> Result:
        """Who takes part, and why others do not."""
        result = Result(case, entries(case, self._settings), self._written.size)
        result.failures |= self._broken
        result.notes |= {"files": self._written.notes} if self._written.notes else {}
        for entry in result.entries:
            if entry.runtime == "onnx" and (why := self._written.failures.get(entry.file)):
                result.failures[entry.name] = why
            if entry.file in self._written.groups and entry.runtime == "onnx":
                result.groups[entry.name] = self._written.groups[entry.file]
        dropped = fitting(result.entries, case, self._written.size, self._settings, self._room)[1]
        result.failures |= {each.name: why for each, why in dropped.items()}
        self._choose(case, result)
        return result

    def _ready(self, result: Result) -> list[Entry]:
        return [each for each in result.entries if each.name not in result.failures | result.declined]

    def _choose(self, case: Case, result: Result) -> None:
        """Have the form with the best time at this number of tokens written."""
        entries_by_kind: dict[str, list[str]] = {}
        for each in _chosen(result):
            entries_by_kind.setdefault(each.weights, []).append(each.name)
        for kind, names in entries_by_kind.items():
            self._progress(f"{case}: choosing the form, {kind} weights")
            try:
                found = _choose(case, kind, self._folder, self._settings)
            except Failure as failure:
                result.failures |= dict.fromkeys(names, str(failure))
                continue
            file = chosen_file(case.tokens, kind)
            for name in names:
                if why := found.failures.get(file):
                    result.declined[name] = why
                else:
                    result.groups[name] = found.groups[file]
                    result.notes[name] = found.notes

    def _use_chosen(self, case: Case, result: Result) -> None:
        """The chosen files of this number of tokens take the place of the last one's."""
        for each in _chosen(result):
            path, link = self._folder / chosen_file(case.tokens, each.weights), self._folder / each.file
            if path.exists():
                link.unlink(missing_ok=True)
                link.hardlink_to(path)
                self._opened.discard(each.name)

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

    def _rounds(
        self, found: list[Entry], case: Case, result: Result, times: dict[str, list[list[float]]]
    ) -> None:
        """Add this seating's rounds to `times`, and what all rounds say to the result."""
        for index in range(self._settings.rounds):
            self._progress(f"{case}: round {index + 1} of {self._settings.rounds}")
            for entry in found[:: -1 if index % 2 else 1]:
                answer = self._ask(result, entry, "time", entry, self._settings.seconds)
                if answer is not None:
                    times.setdefault(entry.name, []).append(answer)
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


def _chosen(result: Result) -> list[Entry]:
    return [each for each in result.entries if each.form == "chosen" and each.runtime == "onnx"]


def _choose(case: Case, kind: str, folder: Path, settings: Settings) -> Written:
    factory = "tools.benchmark.files:open_writer"
    with Process(factory, case.model, case.dtype, folder, settings, quiet=not settings.verbose) as writer:
        answer: Written = writer.ask("choose", case.tokens, kind)
    return answer
