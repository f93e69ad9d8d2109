"""A plan as a table for a terminal: the front with the chosen point marked, the groups, what to know."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxfuse.naming import span
from fxfuse.planning.records import FrontPoint, Plan, PlannedGroup
from fxfuse.table import columns, plain, text

__all__ = ["draw_plan", "render_plan"]

_PARTS = 16
"""Lengths that are written one by one."""
_MOST = 40
"""Points that are shown of a front; more are thinned evenly, the chosen one kept."""


def render_plan(plan: Plan, width: int = 110) -> str:
    """The table as plain text of at most `width` columns."""
    return plain(draw_plan(plan), width)


def draw_plan(plan: Plan) -> RenderableType:
    """The table as something rich can print."""
    parts: list[RenderableType] = [text(_headline(plan), "bold")]
    if plan.front:
        parts += [Text(), _front(plan.front)]
    if plan.groups:
        parts += [Text(), _groups(plan.groups)]
    if plan.notes:
        parts += [Text(), *(text(f"note: {note}", "dim") for note in plan.notes)]
    return Group(*parts)


def _headline(plan: Plan) -> str:
    model = f"{plan.model}: " if plan.model else ""
    if not plan.groups:
        return f"{model}no groups"
    blocks = sum(len(group.blocks) for group in plan.groups)
    groups = f"{len(plan.groups)} group{'s' if len(plan.groups) > 1 else ''}"
    return f"{model}{blocks} FFN blocks in {groups}; KL {_loss(plan)}"


def _loss(plan: Plan) -> str:
    if plan.kl is not None:
        return f"{_measured(plan.kl, plan.kl_error)} nats/token, measured on all groups together"
    return (
        f"{_number(plan.predicted_kl)} nats/token, predicted" if plan.predicted_kl is not None else "unknown"
    )


def _front(front: Sequence[FrontPoint]) -> Table:
    timed = any(point.latency_ms is not None for point in front)
    measured = any(point.kl is not None for point in front)
    optional = [*(["latency ms"] if timed else []), "predicted KL", *(["measured KL"] if measured else [])]
    table = columns("lengths", "FFNs in a row", *optional, "", left=1)
    for point in _shown(front):
        mark = "chosen" if point.chosen else "" if point.within else "over budget"
        figures = [str(point.depth)]
        figures += [_number(point.latency_ms)] if timed else []
        figures += [_number(point.predicted_kl)]
        figures += [_measured(point.kl, point.kl_error)] if measured else []
        lengths = " | ".join(map(_lengths, point.lengths))
        style = "bold" if point.chosen else "" if point.within else "dim"
        table.add_row(text(lengths), *figures, mark, style=style)
    return table


def _groups(groups: Sequence[PlannedGroup]) -> Table:
    timed = any(group.latency_ms is not None for group in groups)
    table = columns("group", "blocks", "SQNR dB", "KL alone", *(["latency ms"] if timed else []))
    for group in groups:
        sqnr = f"{group.sqnr_db:.1f}" if group.sqnr_db is not None else ""
        kl = _number(group.kl) + (" (predicted)" if group.kl is not None and not group.measured else "")
        time = [_number(group.latency_ms)] if timed else []
        table.add_row(text(span(group.blocks)), str(len(group.blocks)), sqnr, kl, *time)
    return table


def _shown(front: Sequence[FrontPoint]) -> list[FrontPoint]:
    if len(front) <= _MOST:
        return list(front)
    places = {index * (len(front) - 1) // (_MOST - 1) for index in range(_MOST)}
    return [point for place, point in enumerate(front) if place in places or point.chosen]


def _lengths(lengths: Sequence[int]) -> str:
    """1+2+2, or of a long chain 30x1+10x2."""
    if len(lengths) <= _PARTS:
        return "+".join(map(str, lengths))
    runs = [(length, len(list(same))) for length, same in itertools.groupby(lengths)]
    return "+".join(f"{count}x{length}" if count > 1 else str(length) for length, count in runs)


def _measured(kl: float | None, error: float | None) -> str:
    return _number(kl) + (f" ± {error:.1g}" if error is not None else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
