"""A plan from the path that was taken: its groups by name, the front, and what a user should know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from fxfuse.analysis.records import Segment
from fxfuse.planning.front import Point
from fxfuse.planning.measuring import Meter
from fxfuse.planning.records import FrontPoint, Plan, PlannedGroup
from fxfuse.planning.search import Path
from fxfuse.planning.segments import Segments
from fxfuse.versions import versions

__all__ = ["written"]


def written(
    segments: Segments, front: list[Point], choice: Path, meter: Meter | None, asked: Mapping[str, Any]
) -> Plan:
    """The plan of the path `choice`; `asked` are the bounds besides those of the budget."""
    analysis = segments.analysis
    measured = _figures(choice, meter)
    bounds = {
        name: value for name, value in asdict(segments.budget).items() if name not in ("seed", "requantize")
    }
    latency = segments.latency.times if segments.latency is not None else None
    return Plan(
        id=analysis.id,
        groups=tuple(_group(segments, each) for each in segments.groups(choice)),
        budget={**bounds, **asked, "latency": latency},
        predicted_kl=_predicted(segments, choice),
        kl=measured["kl"],
        kl_error=measured["kl_error"],
        front=tuple(_point(segments, point, choice, meter) for point in front),
        model=analysis.model,
        notes=(*segments.notes, *_notes(segments, front, choice, meter)),
        versions=versions(),
    )


def _group(segments: Segments, segment: Segment) -> PlannedGroup:
    return PlannedGroup(
        blocks=segments.names(segment),
        kl=segment.loss if math.isfinite(segment.loss) else None,
        sqnr_db=segment.sqnr_db,
        measured=segment.kl is not None,
        latency_ms=segments.time(segment),
    )


def _point(segments: Segments, point: Point, choice: Path, meter: Meter | None) -> FrontPoint:
    """The point with the path that was taken or measured best there, else with the predicted best."""
    known = [path for path in point.paths if meter is not None and path in meter.known]
    path = choice if choice in point.paths else min(known, key=meter.kl) if meter and known else point.best
    figures = _figures(path, meter)
    bound, kl = segments.budget.max_kl, figures["kl"]
    loss = path.loss if kl is None else kl
    return FrontPoint(
        lengths=path.lengths,
        depth=path.depth,
        predicted_kl=_predicted(segments, path),
        kl=kl,
        kl_error=figures["kl_error"],
        latency_ms=path.latency if segments.latency is not None else None,
        chosen=path == choice,
        within=point.within and (bound is None or loss <= bound),
    )


def _predicted(segments: Segments, path: Path) -> float | None:
    return None if segments.by_drift and segments.groups(path) else path.loss


def _figures(path: Path, meter: Meter | None) -> dict[str, float | None]:
    """The measured KL and its standard error, None where there are none or no numbers."""
    found = meter.known.get(path) if meter is not None else None
    if found is None:
        return {"kl": None, "kl_error": None}
    return {
        "kl": found.kl if math.isfinite(found.kl) else None,
        "kl_error": found.standard_error if math.isfinite(found.standard_error) else None,
    }


def _notes(segments: Segments, front: list[Point], choice: Path, meter: Meter | None) -> Iterator[str]:
    groups = segments.groups(choice)
    if not segments.analysis.chains:
        yield "the model has no chain of FFN blocks: there is nothing to fuse"
        return
    if not groups:
        yield "no group is within the budget"
    elif meter is None and not segments.by_drift:
        yield "the KL is the sum of single groups': give the model and data to measure all groups together"
    elif meter is not None:
        yield from _repairs(front, choice, meter)


def _repairs(front: list[Point], choice: Path, meter: Meter) -> Iterator[str]:
    """Where measuring and predicting disagreed."""
    point = next(point for point in front if choice in point.paths)
    if choice != point.best:
        first = meter.kl(point.best)
        yield (
            f"of {sum(path in meter.known for path in point.paths)} near ties the measured KL chose: "
            f"{meter.kl(choice):.3g} nats, where the groups predicted best lose {first:.3g}"
        )
    kl = meter.kl(choice)
    if choice.loss > 0 and not 0.8 <= kl / choice.loss <= 1.25:
        yield f"all groups together lose {kl / choice.loss:.2g} times the sum of what each loses alone"
