"""The Pareto front: the least loss for each depth (or latency), with the chosen point and the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fxfuse.page.names import lengths_text
from fxfuse.page.numbers import figure, known, with_error
from fxfuse.page.plot import Frame, axes, bars, dot, key, place_labels, ring
from fxfuse.page.scales import Scale, linear_over, log_over
from fxfuse.page.svg import drawing, group, label, path
from fxfuse.planning.records import FrontPoint

__all__ = ["draw_front", "has_latency"]


_FEW = 12
"""Up to so many points all are named, if there is room; of more the chosen one and both ends."""
_LONGEST = 18


def has_latency(front: Sequence[FrontPoint]) -> bool:
    """Whether every point has one, so that it can stand in place of depth."""
    return bool(front) and all(known(point.latency_ms) for point in front)


def draw_front(front: Sequence[FrontPoint], budget: float | None = None, narrow: bool = False) -> str:
    """KL (log) over depth or latency. A measured point stands with its error, its prediction hollow."""
    frame = Frame(336, 330, 56, 328, 56, 280) if narrow else Frame(880, 400, 64, 868, 56, 350)
    latency = has_latency(front)
    points = sorted((p for p in front if known(p.kl) or known(p.predicted_kl)), key=lambda p: _at(p, latency))
    x = linear_over([_at(p, latency) for p in points], frame.left, frame.right, whole=not latency)
    values = [v for p in points for v in (p.kl, p.predicted_kl, budget) if v is not None and known(v)]
    y = log_over(values, frame.bottom - 20, frame.top + 6, frame.bottom - 1)
    title = "latency, ms" if latency else "FFNs in a row"
    spots = [(x(_at(p, latency)), y(_loss(p))) for p in points]
    parts = [
        *axes(frame, x, y, title, "KL, nats/token (log)"),
        *key(frame, [("measured", "measured"), ("predicted", "predicted")], 18),
        *_budget(budget, y, frame),
        path(spots, class_="front"),
        *(_point(p, spot, y, frame) for p, spot in zip(points, spots, strict=True)),
        *_names(points, spots, frame),
    ]
    kind = "narrow" if narrow else "wide"
    return drawing(f"front-{kind}", frame.width, frame.height, "Pareto front", _told(points), parts)


def _loss(point: FrontPoint) -> float:
    """The KL that is drawn: measured where it was, else predicted."""
    found = point.kl if known(point.kl) else point.predicted_kl
    return math.nan if found is None else found


def _at(point: FrontPoint, latency: bool) -> float:
    """Where a point lies along x."""
    return float(point.latency_ms or 0.0) if latency else float(point.depth)


def _budget(budget: float | None, y: Scale, frame: Frame) -> list[str]:
    if budget is None or not known(budget) or budget <= 0:
        return []
    place = y(budget)
    text = f"budget {budget:g}"
    return [
        path([(frame.left, place), (frame.right, place)], class_="budget"),
        label(frame.right - 2, place - 6, text, "muted halo", "end"),
    ]


def _point(point: FrontPoint, spot: tuple[float, float], y: Scale, frame: Frame) -> str:
    x, at = spot
    parts = []
    if point.predicted_kl is not None and known(point.predicted_kl):
        beside = x + (9 if known(point.kl) else 0)
        parts.append(dot(beside, y(point.predicted_kl), "predicted"))
    if point.kl is not None and known(point.kl):
        parts += [bars(x, y, point.kl, point.kl_error, frame.bottom - 1), dot(x, at, "measured", 4.5)]
    parts += [ring(x, at)] if point.chosen else []
    latency = f", {figure(point.latency_ms)} ms" if known(point.latency_ms) else ""
    told = f"{lengths_text(point.lengths)}: {point.depth} FFNs in a row{latency}, "
    told += f"KL {with_error(point.kl, point.kl_error)}, predicted {figure(point.predicted_kl)}"
    return group(parts, told)


def _names(points: Sequence[FrontPoint], spots: Sequence[tuple[float, float]], frame: Frame) -> list[str]:
    """The lengths of the groups, the chosen point's first."""
    order = sorted(range(len(points)), key=lambda place: not points[place].chosen)
    ends = {0, len(points) - 1}
    shown = [n for n in order if points[n].chosen or n in ends or len(points) <= _FEW]
    wanted = [(*spots[place], _name(points[place])) for place in shown]
    beside = [(x + 9, y) for (x, y), point in zip(spots, points, strict=True) if known(point.kl)]
    return place_labels(wanted, frame, [*spots, *beside])


def _name(point: FrontPoint) -> str:
    text = lengths_text(point.lengths)
    if len(text) > _LONGEST:
        groups = sum(length > 1 for lengths in point.lengths for length in lengths)
        text = f"{groups} groups"
    return f"chosen: {text}" if point.chosen else text


def _told(points: Sequence[FrontPoint]) -> str:
    chosen = next((point for point in points if point.chosen), None)
    text = f"{len(points)} points."
    if chosen is None:
        return text
    loss = with_error(_loss(chosen), chosen.kl_error)
    return f"{text} Chosen: groups of {lengths_text(chosen.lengths)}, KL {loss}."
