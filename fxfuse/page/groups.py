"""The tables of what was fused, what was not and why, and the stages of the whole way."""

from __future__ import annotations

from collections.abc import Sequence

from fxfuse.naming import span, spans
from fxfuse.page.numbers import DASH, count, figure, percent, with_error
from fxfuse.page.records import Stage
from fxfuse.page.tables import Column, table
from fxfuse.planning.records import Plan, PlannedGroup
from fxfuse.report import GroupReport, Report

__all__ = ["end_to_end_table", "groups_table", "misses_table", "stages_table"]


def groups_table(plan: Plan | None, report: Report | None) -> str | None:
    """One row for each group that was fused, or planned; columns that nothing fills are left out."""
    planned = {group.blocks: group for group in plan.groups if len(group.blocks) > 1} if plan else {}
    fused = {group.blocks: group for group in report.groups} if report else {}
    names = list(fused or planned)
    if not names:
        return None
    rows = [_row(each, planned.get(each), fused.get(each)) for each in names]
    shown = [title for title in rows[0] if any(row[title] != DASH for row in rows)]
    columns = [Column(title, number=title != "group") for title in shown]
    return table(columns, [[row[title] for title in shown] for row in rows])


def _row(names: tuple[str, ...], planned: PlannedGroup | None, fused: GroupReport | None) -> dict[str, str]:
    row = {"group": span(names), "FFNs": str(len(names))}
    row["intermediate size"] = count(fused.intermediate_size if fused else None)
    kl = figure(planned.kl) if planned else DASH
    row["KL alone, nats/token"] = kl if planned and planned.measured or kl == DASH else f"{kl} (predicted)"
    row["SQNR, dB"] = figure(fused.sqnr_db if fused else planned.sqnr_db if planned else None)
    row["cosine"] = figure(fused.cosine if fused else None, 5)
    row["relative error"] = figure(fused.relative_error if fused else None)
    row["latency, ms"] = figure(planned.latency_ms if planned else None)
    row["rewrite error"] = figure(fused.rewrite_error if fused else None, 2)
    return row


def end_to_end_table(report: Report) -> str | None:
    """Sizes before and after, and the figures of the whole model."""
    rows: list[tuple[str, str, str]] = []
    if report.ffn_blocks and report.groups:
        rows.append(("FFN blocks", count(report.ffn_blocks), count(report.ffn_blocks_left)))
    if report.before is not None and report.after is not None:
        one, other = report.before, report.after
        rows.append(("nodes on the longest path", count(one.depth), count(other.depth)))
        rows.append(("nodes", count(one.nodes), count(other.nodes)))
        rows.append(("parameters", count(one.parameters), count(other.parameters)))
        if one.file_size is not None and other.file_size is not None:
            rows.append(("file size, bytes", count(one.file_size), count(other.file_size)))
    rows += _whole(report)
    columns = [Column("whole model", False), Column("before"), Column("after")]
    return table(columns, rows, form="plain") if rows else None


def _whole(report: Report) -> list[tuple[str, str, str]]:
    """Figures that compare both, so that only the fused model has them."""
    found = report.end_to_end
    rows = [
        ("KL to the original, nats/token", with_error(found.get("kl"), found.get("kl_error"))),
        ("top-1 agreement", percent(found.get("top1_agreement"))),
        ("relative error of the output", figure(found.get("relative_error"))),
    ]
    return [(name, DASH, text) for name, text in rows if text != DASH]


def misses_table(report: Report) -> str | None:
    """Why not more: one row for each reason."""
    places: dict[str, list[str]] = {}
    for miss in report.misses:
        places.setdefault(miss.reason, []).append(miss.where)
    columns = [Column("where", False), Column("why it was not fused", False)]
    rows = [(spans(where), reason) for reason, where in places.items()]
    return table(columns, rows, form="plain") if rows else None


def stages_table(stages: Sequence[Stage]) -> str:
    """One row for each stage; the last one stands out."""
    fields = {
        "stage": [stage.name for stage in stages],
        "loss, nats": [with_error(stage.loss, stage.loss_error) for stage in stages],
        "KL, nats/token": [with_error(stage.kl, stage.kl_error) for stage in stages],
        "updates in a row": [count(stage.depth) for stage in stages],
        "latency p50, ms": [figure(stage.latency_ms) for stage in stages],
        "file": [stage.file or DASH for stage in stages],
    }
    shown = {title: texts for title, texts in fields.items() if any(text != DASH for text in texts)}
    columns = [Column(title, title not in ("stage", "file")) for title in shown]
    return table(columns, zip(*shown.values(), strict=True), marked=[len(stages) - 1])
