"""From values to pixels: linear and logarithmic scales, their round ticks, and labels moved apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fxfuse.page.numbers import power_text

__all__ = ["Linear", "Log", "Scale", "log_over", "linear_over", "nice_step", "spread", "thinned"]


_LEAST = 1e-15
"""On logarithmic scales what lies below counts as zero: rounding makes it."""


class Scale(Protocol):
    """Maps values to pixels."""

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        ...

    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and labels of the ticks."""
        ...


@dataclass(frozen=True)
class Linear:
    """low and high lie at the pixels start and end; `whole` ticks only at whole numbers."""

    low: float
    high: float
    start: float
    end: float
    whole: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """About one tick every 60 pixels (36 for whole numbers, which are short), at round values."""
        apart = 36 if self.whole else 60
        step = nice_step((self.high - self.low) / max(1.0, abs(self.end - self.start) / apart))
        step = max(1.0, math.ceil(step)) if self.whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(self(n * step), f"{n * step:,.{decimals}f}") for n in range(first, last + 1)]


@dataclass(frozen=True)
class Log:
    """low and high, both positive, lie at start and end; zero and less lie at `zero`, where it is given."""

    low: float
    high: float
    start: float
    end: float
    zero: float | None = None

    def __call__(self, value: float) -> float:
        """The pixel of a value; what lies below `low` lies at its pixel."""
        if value <= _LEAST and self.zero is not None:
            return self.zero
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Powers of ten, thinned out to lie 24 pixels apart; 2 and 5 between them where there are few."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, math.ceil((last - first + 1) * 24 / max(1.0, abs(self.end - self.start))))
        steps = (1, 2, 5) if math.log10(self.high / self.low) < 2 else (1,)
        values = [step * 10.0**n for n in range(first, last + 1) if n % every == 0 for step in steps]
        found = [(self(v), power_text(v)) for v in values if self.low * 0.999 <= v <= self.high * 1.001]
        return found + ([(self.zero, "0")] if self.zero is not None else [])


def linear_over(values: Sequence[float], start: float, end: float, whole: bool = False) -> Linear:
    """A linear scale that holds the values with a margin; one value stands in the middle."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.5 or 1.0
    margin = max(0.5, margin) if whole else margin
    return Linear(low - margin, high + margin, start, end, whole)


def log_over(values: Sequence[float], start: float, end: float, zero: float | None = None) -> Log:
    """A logarithmic scale that holds the positive ones of the values with a margin.

    Where there are others, they lie at the pixel `zero`; without it at the scale's low end.
    """
    positive = [value for value in values if value > _LEAST] or [1.0]
    low, high = min(positive), max(positive)
    margin = max((high / low) ** 0.05, 1.3)
    others = any(value <= _LEAST for value in values)
    return Log(low / margin, high * margin, start, end, zero if others else None)


def nice_step(step: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `step`."""
    unit = 10.0 ** math.floor(math.log10(step))
    return next(each * unit for each in (1, 2, 5, 10) if each * unit >= step * (1 - 1e-9))


def thinned(pixels: float, least: float) -> int:
    """Every how many places one may be labelled, if they lie `pixels` apart and labels need `least`."""
    every = max(1, math.ceil(least / pixels - 1e-9))
    return next(each for each in (1, 2, 5, 10, 20, 50, 100, every) if each >= every)


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places in order, moved as little as a simple rule can so that they lie `gap` apart within low..high."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, low))
    limit = max(high, low + gap * (len(moved) - 1))
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved
