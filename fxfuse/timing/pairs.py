"""Two contestants in turn: the whole model before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fxfuse.report import WholeTiming
from fxfuse.timing.contest import Pace, Standing, run_rounds
from fxfuse.timing.verdict import LEAST
from fxfuse.timing.workers import Failure, Worker

__all__ = ["FUSED", "PACE", "compare", "turn"]

Turns = Mapping[str, Callable[[float], "list[float]"]]

FUSED = "fused"
PACE = Pace(rounds=3, seconds=0.15)
_LEAST_CALLS = 3
_TIMES = 3
"""How often a loss is measured again before it is believed."""


def compare(turns: Turns, tokens: int, pace: Pace = PACE) -> WholeTiming:
    """Time the two in turn; what looks like a loss is measured again before it is believed.

    Raises:
        Failure: One of them fails.
    """
    standing = Standing()
    for _ in range(_TIMES):
        run_rounds(turns, standing, pace, [FUSED], pace.rounds)
        if standing.failures:
            raise Failure(standing.failures[FUSED])
        if standing.ratio(FUSED) >= LEAST:
            break
    ratio = standing.ratio(FUSED)
    return WholeTiming(tokens, 1e3 * standing.seconds(), 1e3 * standing.seconds(FUSED), ratio)


def turn(worker: Worker) -> Callable[[float], list[float]]:
    """A round in a worker's process."""
    return lambda seconds: list(worker.ask("round", seconds, _LEAST_CALLS))
