"""One group: what is tried on it, one step on top of the other, and what of it may be kept.

naive  ->  g'  ->  h  ->  distilled         a step that does not win on held-out tokens is left out
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fxfuse.errors import InputError
from fxfuse.naming import span
from fxfuse.passes.weights import Wide
from fxfuse.recovery.fitting import Fitting
from fxfuse.recovery.judging import Candidate
from fxfuse.recovery.local import distill_group
from fxfuse.recovery.records import Trial

__all__ = ["as_trial", "candidates", "winners"]


def candidates(fitting: Fitting, wide: Wide) -> list[Candidate]:
    """All that was tried, the naive form first; `wide` holds the naive weights before they are rounded."""
    best = fitting.candidate("naive", wide)
    if not math.isfinite(best.errors.mean):
        names = span([block.name for block in fitting.fit.blocks])
        raise InputError(
            f"The blocks {names} side by side give NaN or infinity on the calibration data: leave them out."
        )
    found = [best]
    steps: list[Callable[[Candidate], Candidate | None]] = [
        lambda start: fitting.inputs(start, wide),
        fitting.outputs,
    ]
    if fitting.options.method == "distill":
        steps.append(lambda start: distill_group(fitting, start))
    for step in steps:
        tried = step(best)
        if tried is None or tried is best:
            continue
        found.append(tried)
        if tried.errors.beats(best.errors):
            best = tried
    return found


def winners(found: Sequence[Candidate]) -> list[Candidate]:
    """Those that beat the naive form on the held-out tokens, the best first."""
    better = [each for each in found[1:] if each.errors.beats(found[0].errors)]
    return sorted(better, key=lambda each: each.errors.mean)


def as_trial(candidate: Candidate, naive: Candidate) -> Trial:
    """The figures of a candidate, without its weights."""
    margin = None if candidate is naive else candidate.errors.margin(naive.errors)
    return Trial(candidate.name, candidate.penalty, candidate.errors.mean, margin)
