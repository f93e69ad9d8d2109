"""The report as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxfuse.naming import span
from fxfuse.passes.records import Miss
from fxfuse.report import GroupReport, Report, Size

__all__ = ["render", "draw"]


def render(report: Report, width: int = 110) -> str:
    """The table as plain text of at most `width` columns."""
    console = Console(file=StringIO(), width=width, force_terminal=False, color_system=None)
    console.print(draw(report))
    return console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined, no-any-return]


def draw(report: Report) -> RenderableType:
    """The table as something rich can print."""
    parts: list[RenderableType] = [Text(_headline(report), style="bold")]
    if report.before is not None and report.after is not None:
        parts += [Text(), _sizes(report.before, report.after)]
    if report.groups:
        parts += [Text(), _groups(report.groups)]
    if report.end_to_end:
        parts += [Text(), Text(_end_to_end(report))]
    if report.misses:
        parts += [Text(), _misses(report.misses)]
    parts += [Text(f"note: {note}", style="dim") for note in _notes(report)]
    parts.append(Text(f"{report.seconds:.1f} s", style="dim"))
    return Group(*parts)


def _headline(report: Report) -> str:
    lengths = ", ".join(str(chain.length) for chain in report.chains)
    found = f"chains of FFN blocks found: {lengths}" if lengths else "no chain of FFN blocks found"
    if not report.groups:
        return f"{report.model}: {found}; nothing fused"
    place = f" -> {report.output}" if report.output else ""
    return f"{report.model}{place}: {found}; {report.fused_blocks} blocks fused into {len(report.groups)}"


def _sizes(before: Size, after: Size) -> Table:
    table = _table("", "before", "after", "change")
    rows = [
        ("nodes", before.nodes, after.nodes),
        ("FFN blocks", before.ffn_blocks, after.ffn_blocks),
        ("depth (nodes on the longest path)", before.depth, after.depth),
        ("parameters", before.parameters, after.parameters),
    ]
    if before.file_size is not None and after.file_size is not None:
        rows.append(("file size, bytes", before.file_size, after.file_size))
    for name, one, other in rows:
        table.add_row(name, f"{one:,}", f"{other:,}", f"{100 * (other - one) / max(one, 1):+.1f} %")
    return table


def _groups(groups: Sequence[GroupReport]) -> Table:
    table = _table("group", "blocks", "width", "rewrite error", "SQNR dB", "cosine")
    for group in groups:
        figures = (f"{group.rewrite_error:.1e}", f"{group.sqnr_db:.1f}", f"{group.cosine:.5f}")
        table.add_row(span(group.blocks), str(len(group.blocks)), str(group.intermediate_size), *figures)
    return table


def _end_to_end(report: Report) -> str:
    figures = report.end_to_end
    text = f"end to end ({figures['output']}, {figures['tokens']} tokens): "
    if figures.get("kl") is not None:
        text += f"KL {figures['kl']:.2e} nats/token, top-1 agreement {100 * figures['top1_agreement']:.1f} %, "
    return text + f"relative error {figures['relative_error']:.2e}"


def _misses(misses: Sequence[Miss]) -> Table:
    """One row a reason; places that share it are named together."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("not fused", style="dim")
    table.add_column("because", overflow="fold")
    places: dict[str, list[str]] = {}
    for miss in misses:
        places.setdefault(miss.reason, []).append(miss.where)
    for reason, where in places.items():
        table.add_row(span(where), reason)
    return table


def _notes(report: Report) -> list[str]:
    drawn = ["figures are on random inputs: give real ones with --inputs to judge quality"]
    return (drawn if report.inputs == "random" and report.groups else []) + report.notes


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table
