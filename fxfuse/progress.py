"""Long loops that tell how far they are: "measuring segments: 12 of 40, 30 s left"."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeAlias, TypeVar

__all__ = ["Amount", "Progress", "Step", "silent", "track"]

Progress: TypeAlias = Callable[[str], None]
"""Takes a short text at every step; `pipeline.Progress` by another road."""
Item = TypeVar("Item")

_INTERVAL = 0.25
"""Seconds between two texts: more often nobody can read."""


def silent(_: str) -> None:
    """A progress that tells nobody."""


class Step(str):
    """The text of a step that is counted, with its parts for a screen that draws a bar.

    `total` and `seconds_left` are None where nobody knows.
    """

    what: str
    done: int
    total: int | None
    seconds_left: float | None

    def __new__(
        cls,
        what: str,
        done: int,
        total: int | None,
        seconds_left: float | None = None,
        word: Callable[[int], str] = str,
    ) -> Step:
        """Word the step, its counts with `word`."""
        count = f"{word(done)} of {word(total)}" if total is not None else word(done)
        left = "" if seconds_left is None else f", {duration(seconds_left)} left"
        step = super().__new__(cls, f"{what}: {count}{left}")
        step.what, step.done, step.total, step.seconds_left = what, done, total, seconds_left
        return step


def track(
    items: Iterable[Item], what: str, progress: Progress = silent, *, total: int | None = None
) -> Iterator[Item]:
    """Go through `items`, and tell `progress` at the start, at the end and four times a second between.

    Args:
        items: What is gone through.
        what: What is done to them, such as "measuring segments".
        progress: Called with a `Step`.
        total: How many there are, where `items` cannot tell.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    started = told = time.monotonic()
    progress(Step(what, 0, total))
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told >= _INTERVAL or done == total:
            told = now
            progress(Step(what, done, total, _left(now - started, done, total)))


class Amount:
    """How much of a known total is done: `add` tells `progress` at most four times a second, and at the end.

    done: what was done before and took no time now. word: how counts are told, such as `disks.size_words`.
    """

    def __init__(
        self, what: str, total: int, progress: Progress, *, done: int = 0, word: Callable[[int], str] = str
    ) -> None:
        self._what, self._total, self._progress, self._word = what, total, progress, word
        self._done = self._before = done
        self._started = self._told = time.monotonic()
        progress(Step(what, done, total, None, word))

    def add(self, count: int) -> None:
        """Tell that so much more is done."""
        self._done += count
        now = time.monotonic()
        if now - self._told < _INTERVAL and self._done < self._total:
            return
        self._told = now
        here, left = self._done - self._before, self._total - self._done
        seconds = (now - self._started) / here * left if here and left > 0 else None
        self._progress(Step(self._what, self._done, self._total, seconds, self._word))


def duration(seconds: float) -> str:
    """Word a duration as people say it: 30 s, 5 min, 2 h 10 min."""
    whole = max(1, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _left(elapsed: float, done: int, total: int | None) -> float | None:
    if total is None or done >= total:
        return None
    return elapsed / done * (total - done)
