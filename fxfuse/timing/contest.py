"""Contestants in turn against one baseline, and an early end for those that are clearly behind.

Only ratios within a round are believed: a machine that slows down slows all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from fxfuse.timing.rounds import percentile
from fxfuse.timing.workers import Failure

__all__ = ["BASELINE", "Pace", "Standing", "run_rounds"]

BASELINE = "sequential"

Turn = Callable[[float], list[float]]
"""Runs a round of so many seconds; the seconds of each call."""


@dataclass(frozen=True)
class Pace:
    """How long is measured: `rounds` of `seconds`; after `first` of them who is clearly behind drops out.

    pause: seconds after each turn, until the threads of a runtime sleep.
    """

    rounds: int = 5
    first: int = 2
    seconds: float = 0.06
    pause: float = 0.01
    behind: float = 0.95


@dataclass
class Standing:
    """What was measured at one token count: the baseline's seconds, and ratios to it by name, by round."""

    base: list[float] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """Time of the baseline / time of `name`: above 1 it is faster; 0 where it failed."""
        found = self.ratios.get(name)
        return median(found) if found and name not in self.failures else 0.0

    def low(self, name: str) -> float:
        """The ratio that three of four rounds reached; 0 where it failed."""
        found = self.ratios.get(name)
        return percentile(found, 0.25) if found and name not in self.failures else 0.0

    def is_hopeless(self, name: str, share: float) -> bool:
        """Whether it never came near `share` of the baseline's speed, so that it pays nowhere."""
        return name in self.ratios and max(self.ratios[name]) < share

    def seconds(self, name: str = BASELINE) -> float:
        """The time of one call."""
        base = median(self.base)
        return base if name == BASELINE else base / (self.ratio(name) or math.nan)


def run_rounds(
    turns: Mapping[str, Turn], standing: Standing, pace: Pace, names: Iterable[str], rounds: int | None = None
) -> None:
    """Measure `names` against the baseline into `standing`; all of `rounds` where given, else in two steps.

    Raises:
        Failure: The baseline fails.
    """
    racing = [name for name in names if name not in standing.failures]
    for index in range(pace.rounds if rounds is None else rounds):
        if rounds is None and index == pace.first:
            racing = _still_racing(standing, racing, pace)
        if racing:
            _run_round(turns, standing, pace, racing, backwards=bool(index % 2))


def _run_round(
    turns: Mapping[str, Turn], standing: Standing, pace: Pace, racing: list[str], *, backwards: bool
) -> None:
    order = [BASELINE, *(name for name in racing if name not in standing.failures)]
    found: dict[str, float] = {}
    for name in order[:: -1 if backwards else 1]:
        try:
            found[name] = percentile(turns[name](pace.seconds), 0.5)
        except Failure as failure:
            if name == BASELINE:
                raise
            standing.failures[name] = str(failure)
        time.sleep(pace.pause)
    base = found.pop(BASELINE)
    standing.base.append(base)
    for name, seconds in found.items():
        standing.ratios.setdefault(name, []).append(base / seconds)


def _still_racing(standing: Standing, racing: list[str], pace: Pace) -> list[str]:
    """Those whose best round is not clearly behind the leader's usual one."""
    alive = [name for name in racing if name not in standing.failures]
    lead = max((standing.ratio(name) for name in alive), default=0.0)
    return [name for name in alive if max(standing.ratios[name]) >= pace.behind * lead]
