"""Which form wins, and whether it pays: from the ratios at every token count that matters.

The best of several forms is also the luckiest. So what counts against being slower is not its usual ratio but
the one that three of four rounds reached: on a machine whose noise is larger than the gain, a group stays
sequential.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fxfuse.timing.contest import Standing

__all__ = ["GAIN", "LEAST", "Verdict", "judge"]

LEAST = 0.98
"""The least ratio at any token count: never slower than the sequential chain by more than 2 %."""
GAIN = 1.02
"""The least geometric mean of the ratios: less is not worth any loss."""
_DOUBT = 0.03


@dataclass(frozen=True)
class Verdict:
    """The best contestant: its ratios by token count, usual ones and what three of four rounds reached."""

    name: str
    ratios: Mapping[int, float]
    lows: Mapping[int, float]

    @property
    def mean(self) -> float:
        """The geometric mean."""
        return math.exp(sum(math.log(max(each, 1e-9)) for each in self.ratios.values()) / len(self.ratios))

    @property
    def worst(self) -> int:
        """The token count at which it does worst."""
        return min(self.lows, key=lambda tokens: self.lows[tokens])

    @property
    def pays(self) -> bool:
        """Whether it is worth taking."""
        return min(self.lows.values()) >= LEAST and self.mean >= GAIN

    @property
    def is_unsteady(self) -> bool:
        """Whether it would pay if every round were a usual one."""
        return not self.pays and min(self.ratios.values()) >= LEAST and self.mean >= GAIN

    @property
    def in_doubt(self) -> bool:
        """Whether a little noise would turn it round."""
        least, mean = min(self.lows.values()) - LEAST, self.mean - GAIN
        return (abs(least) < _DOUBT and mean > -_DOUBT) or (abs(mean) < _DOUBT and least > -_DOUBT)


def judge(standings: Mapping[int, Standing], names: Sequence[str]) -> Verdict | None:
    """The best of `names`: of those never behind the one that gains most, else the one least behind.

    One that was given up at a token count has ratios for that one and those before.
    """
    found = [_verdict(standings, name) for name in names]
    running = [each for each in found if each.ratios and min(each.ratios.values()) > 0]
    if not running:
        return None
    return max(running, key=lambda each: (each.pays, min(each.ratios[each.worst], LEAST), each.mean))


def _verdict(standings: Mapping[int, Standing], name: str) -> Verdict:
    there = {
        tokens: each for tokens, each in standings.items() if name in each.ratios or name in each.failures
    }
    ratios = {tokens: each.ratio(name) for tokens, each in there.items()}
    return Verdict(name, ratios, {tokens: each.low(name) for tokens, each in there.items()})
