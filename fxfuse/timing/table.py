"""What was timed, as a table: a row for each group and for the whole model, a column for each token count."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from fxfuse.naming import printable, span
from fxfuse.report import Report
from fxfuse.timing.wording import number, token_count

__all__ = ["timings"]


def timings(report: Report) -> Table:
    """Milliseconds before and after, and how many times faster that is, by token count."""
    rows = [
        (span(group.blocks), {
            tokens: (group.timing.sequential_ms[tokens], group.timing.fused_ms[tokens])
            for tokens in group.timing.fused_ms
        })
        for group in report.groups
        if group.timing is not None
    ]  # fmt: skip
    if report.latency:
        whole = {each.tokens: (each.original_ms, each.fused_ms) for each in report.latency}
        rows.append(("the whole model", whole))
    counts = sorted({tokens for _, times in rows for tokens in times})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("time (ms)", overflow="fold", min_width=9)
    for tokens in counts:
        table.add_column(token_count(tokens), justify="right")
    for name, times in rows:
        cells = [_change(*times[tokens]) if tokens in times else "" for tokens in counts]
        table.add_row(Text(printable(name), overflow="fold"), *cells)
    return table


def _change(before: float, after: float) -> str:
    return f"{number(before)} -> {number(after)} ({before / after:.2f}x)"
