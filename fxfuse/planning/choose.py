"""Choose groups: predicted from single groups first, then measured together, and repaired.

1. The front: for every depth (or latency) the groups that are predicted to lose least, a shortest path.
2. The point: the most fused (or the fastest) one within the budget, by prediction.
3. Measured: near ties at this point are measured end to end, and the best of them is taken. While it is over
   max_kl the next deeper point is tried; where it is within, the next more fused one is, until one is not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxfuse.analysis.reading import read_analysis
from fxfuse.analysis.records import Analysis
from fxfuse.budget import Budget
from fxfuse.calibration.store import DEFAULT_BOUND
from fxfuse.errors import InputError
from fxfuse.planning.front import Point, front_of
from fxfuse.planning.latency import AnyLatency, read_latency
from fxfuse.planning.measuring import Measure, Meter, measuring
from fxfuse.planning.records import Plan
from fxfuse.planning.search import Path
from fxfuse.planning.segments import Segments
from fxfuse.planning.writing import written
from fxfuse.progress import Progress, silent

if TYPE_CHECKING:
    from fxfuse.frontends.opening import Model

__all__ = ["plan"]


def plan(
    analysis: Analysis | str | os.PathLike[str],
    *,
    max_kl: float | None = None,
    depth: int | None = None,
    min_sqnr: float | None = 12.0,
    latency: AnyLatency | None = None,
    max_group: int | None = None,
    max_group_bytes: int | None = None,
    include: str | None = None,
    exclude: str | None = None,
    measure: Measure | None = None,
    model: Model | None = None,
    data: Any = None,
    candidates: int = 4,
    whole_front: bool = False,
    memory: int = DEFAULT_BOUND,
    progress: Progress = silent,
    **reading: Any,
) -> Plan:
    """Choose which consecutive blocks to fuse, from an analysis.

    Of the points of the front the most fused one is taken, or with `latency` the fastest, that keeps
    `min_sqnr` in every group and `max_kl` end to end. That is all there is without `max_kl` and `depth`: as
    few FFNs in a row as `min_sqnr` allows.

    Args:
        analysis: What `analyze` returned, or its JSON file.
        max_kl: The greatest KL of the logits, in nats. Predicted as the sum of the groups', and measured
            where the plan is.
        depth: How many FFNs are to be left in a row, over all chains; the least loss at that depth is taken.
        min_sqnr: The least signal-to-noise ratio of each group's update, in dB; None for no bound.
        latency: Milliseconds that you measured, a mapping or a JSON file: see `fxfuse.planning.latency`.
        max_group: The most blocks in one group.
        max_group_bytes: The most bytes that one group's wide weights may take.
        include: A regular expression; only blocks whose name matches are fused.
        exclude: A regular expression; blocks whose name matches are left alone.
        measure: Gives the divergence with groups of names fused at once; `model` and `data` make one.
        model: The model that was analysed, in any form that `analyze` takes.
        data: Calibration data, as `analyze` takes them; the held-out part is measured on.
        candidates: How many near ties of one depth are measured at most.
        whole_front: Measure every point of the front, not only those about the choice.
        memory: Bytes of activations held in memory; what comes on top goes to a temporary file.
        progress: Called with a short text at every step.
        reading: What `Calibration.of` takes besides: tokenizer, context, max_tokens, batch_size, seed.

    Returns:
        The plan; its front holds every depth from the least to none fused (with `latency`, all points that
        none beats in both), those over the budget too.

    Raises:
        InputError: An option makes no sense, times are missing, or nothing is as deep as `depth` asks.
    """
    bounds = Budget.of(
        {
            "max_kl": max_kl,
            "min_sqnr": min_sqnr,
            "max_group": max_group,
            "include": include,
            "exclude": exclude,
        }
    )
    _check(max_kl, depth, latency, max_group_bytes, candidates, (measure, model, data))
    found = analysis if isinstance(analysis, Analysis) else read_analysis(analysis)
    times = read_latency(latency) if latency is not None else None
    segments = Segments(found, bounds, max_group_bytes, times)
    if segments.by_drift and max_kl is not None:
        raise InputError("max_kl needs an analysis with KL: analyze a model that returns logits.")
    front = front_of(segments, candidates)
    asked = {"depth": depth, "max_group_bytes": max_group_bytes}
    with _measure(found, measure, model, data, progress, {**reading, "memory": memory}) as given:
        meter = Meter(segments, given, progress) if given is not None else None
        choice = _Chooser(front, bounds, depth, meter).choose()
        if meter is not None and whole_front:
            meter.know([point.best for point in front])
    return written(segments, front, choice, meter, asked)


@contextlib.contextmanager
def _measure(
    analysis: Analysis, measure: Measure | None, model: Any, data: Any, progress: Progress, reading: Any
) -> Iterator[Measure | None]:
    if model is None:
        yield measure
        return
    with measuring(analysis, model, data, progress, **reading) as made:
        yield made


@dataclass
class _Chooser:
    """Walks along the front to the point that is taken."""

    front: list[Point]
    budget: Budget
    depth: int | None
    meter: Meter | None

    def choose(self) -> Path:
        """The path that is taken."""
        if self.depth is not None:
            return self._measured(self._at_depth(self.depth))
        points = [point for point in self.front if point.within]
        bound = self.budget.max_kl
        if bound is None:
            return self._measured(points[0])
        place = next(index for index, point in enumerate(points) if point.best.loss <= bound)
        return self._repaired(points, place, bound)

    def _at_depth(self, depth: int) -> Point:
        depths = [point.best.depth for point in self.front]
        if depth not in depths:
            raise InputError(f"No plan has depth {depth} (FFNs left in a row): {_listed(depths)} can be had.")
        point = self.front[depths.index(depth)]
        if not point.within:
            kept = [each.best.depth for each in self.front if each.within]
            raise InputError(
                f"No plan of depth {depth} keeps {self.budget.min_sqnr:g} dB in each group: ask for depth "
                f"{_listed(kept)}, or lower min_sqnr."
            )
        return point

    def _repaired(self, points: list[Point], place: int, bound: float) -> Path:
        """From the predicted place to the most fused one that is within `bound` as it is measured."""
        chosen = self._measured(points[place])
        if self.meter is None:
            return chosen
        while self.meter.kl(chosen) > bound and place + 1 < len(points):
            place += 1
            chosen = self._measured(points[place])
            if self.meter.kl(chosen) <= bound:
                return chosen
        while place > 0:
            place -= 1
            further = self._measured(points[place])
            if self.meter.kl(further) > bound:
                break
            chosen = further
        return chosen

    def _measured(self, point: Point) -> Path:
        return point.best if self.meter is None else self.meter.best(point.candidates)


def _listed(depths: list[int]) -> str:
    if depths == list(range(depths[0], depths[-1] + 1)) and len(depths) > 2:
        return f"{depths[0]} to {depths[-1]}"
    return ", ".join(map(str, depths[:-1])) + (" or " if len(depths) > 1 else "") + str(depths[-1])


def _check(
    max_kl: float | None,
    depth: int | None,
    latency: Any,
    max_group_bytes: int | None,
    candidates: int,
    measured: tuple[Any, Any, Any],
) -> None:
    for name, value, least in (("depth", depth, 0), ("max_group_bytes", max_group_bytes, 1)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise InputError(f"{name} must be a whole number of at least {least} or None, not {value!r}.")
    if not isinstance(candidates, int) or candidates < 1:
        raise InputError(f"candidates must be a whole number of at least 1, not {candidates!r}.")
    if depth is not None and (max_kl is not None or latency is not None):
        other = "max_kl" if max_kl is not None else "latency"
        raise InputError(f"depth and {other} both choose how much is fused: give one of the two.")
    measure, model, data = measured
    if (model is None) != (data is None):
        raise InputError("model and data belong together: give both to measure the plan, or neither.")
    if measure is not None and model is not None:
        raise InputError("measure and model both say how to measure: give one of the two.")
