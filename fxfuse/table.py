"""The report as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxfuse.naming import printable, span, spans
from fxfuse.passes.forms import Form
from fxfuse.passes.records import Miss
from fxfuse.quantisation.table import quantised_parts
from fxfuse.report import GroupReport, Report, Size
from fxfuse.timing.table import timings

__all__ = ["columns", "draw", "plain", "render", "text"]


def render(report: Report, width: int = 110, dry_run: bool = False) -> str:
    """The table as plain text of at most `width` columns."""
    return plain(draw(report, dry_run), width)


def plain(drawing: RenderableType, width: int) -> str:
    """What rich can print, as plain text of at most `width` columns."""
    console = Console(
        file=StringIO(), width=width, force_terminal=False, color_system=None, legacy_windows=False
    )
    console.print(drawing)
    printed: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in printed.rstrip("\n").split("\n"))


def draw(report: Report, dry_run: bool = False) -> RenderableType:
    """The table as something rich can print."""
    parts: list[RenderableType] = [text(_headline(report), "bold")]
    if report.before is not None and report.after is not None:
        parts += [Text(), _sizes(report.before, report.after)]
    if report.groups:
        parts += [Text(), _groups(report.groups)]
        parts += [Text(), _recoveries(report.groups)] if any(g.recovery for g in report.groups) else []
        parts += [Text(), text(_end_to_end(report))]
        parts += [Text(), timings(report)] if any(g.timing for g in report.groups) or report.latency else []
        parts += quantised_parts(report.quantisation)
    if report.misses:
        parts += [Text(), _misses(report.misses)]
    parts += [
        Text(),
        *(text(f"note: {note}", "dim") for note in _notes(report)),
        text(_ending(report, dry_run)),
    ]
    return Group(*parts)


def text(what: str, style: str = "") -> Text:
    """Text as it is: rich would take brackets in a string for markup."""
    return Text(printable(what), style=style, overflow="fold")


def _headline(report: Report) -> str:
    lengths = " + ".join(str(chain.length) for chain in report.chains)
    if report.error is not None:
        return f"{report.model}: not fused: {report.error}"
    if not lengths:
        return f"{report.model}: no chain of FFN blocks found"
    found = f"{report.model}: found {'chains' if '+' in lengths else 'a chain'} of {lengths} FFN blocks"
    if not report.groups:
        return f"{found}; fused none"
    wide = f"{len(report.groups)} wide FFN{'s' if len(report.groups) > 1 else ''}"
    return f"{found}; fused {report.fused_blocks} into {wide}"


def _sizes(before: Size, after: Size) -> Table:
    table = columns("", "before", "after", "change")
    rows = [
        ("nodes", before.nodes, after.nodes),
        ("FFN blocks", before.ffn_blocks, after.ffn_blocks),
        ("depth (nodes on the longest path)", before.depth, after.depth),
        ("parameters", before.parameters, after.parameters),
    ]
    if before.file_size is not None and after.file_size is not None:
        rows.append(("file size (bytes)", before.file_size, after.file_size))
    for name, one, other in rows:
        table.add_row(name, f"{one:,}", f"{other:,}", f"{100 * (other - one) / max(one, 1):+.1f} %")
    return table


def _groups(groups: Sequence[GroupReport]) -> Table:
    told = any(group.form is not None for group in groups)
    names = ["group", "blocks", "width", "rewrite error", "SQNR dB", "cosine"]
    table = columns(*names, *(["form"] if told else []), left=int(told))
    for group in groups:
        figures = [f"{group.rewrite_error:.1e}", f"{group.sqnr_db:.1f}", f"{group.cosine:.5f}"]
        figures += [group.form or str(Form())] if told else []
        table.add_row(
            text(span(group.blocks)), str(len(group.blocks)), str(group.intermediate_size), *figures
        )
    return table


def _recoveries(groups: Sequence[GroupReport]) -> Table:
    """What recovery made of every group, on the held-out tokens of its data."""
    table = columns("recovery", "kept", "lambda", "local error", "KL", "why")
    for group in groups:
        found = group.recovery
        if found is not None:
            penalty = "" if found.penalty is None else f"{found.penalty:g}"
            table.add_row(
                text(span(group.blocks)), found.kept, penalty,
                _change(found.error_before, found.error_after), _change(found.kl_before, found.kl_after),
                "" if found.won else found.reason,
            )  # fmt: skip
    return table


def _change(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{before:.1e} -> {after:.1e}"


def _end_to_end(report: Report) -> str:
    figures = report.end_to_end
    if not figures:
        return "end to end: the model has no output of floating-point numbers to compare"
    told = f"end to end ({figures['output']}, {figures['tokens']} tokens): "
    if figures.get("kl") is not None:
        told += (
            f"KL {figures['kl']:.2e} nats/token, top-1 agreement {100 * figures['top1_agreement']:.1f} %, "
        )
    return told + f"relative error {figures['relative_error']:.2e}"


def _misses(misses: Sequence[Miss]) -> Table:
    """One row a reason; places that share it are named together."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("where", overflow="fold")
    table.add_column("why not more", overflow="fold")
    places: dict[str, list[str]] = {}
    for miss in misses:
        places.setdefault(miss.reason, []).append(miss.where)
    for reason, where in places.items():
        table.add_row(text(spans(where)), text(reason))
    return table


def _notes(report: Report) -> list[str]:
    drawn = ["figures are on random inputs: give real ones with --inputs to judge quality"]
    return (drawn if report.inputs == "random" and report.chains else []) + report.notes + _quantised(report)


def _quantised(report: Report) -> list[str]:
    """What was done with quantised weights, group by group."""
    lines = []
    for group in report.groups:
        if group.quantised is not None:
            error = group.requantisation_error
            again = f" (relative error of these weights {error:.1e})" if error is not None else ""
            lines.append(f"{span(group.blocks)}: {group.quantised}{again}")
    return lines


def _ending(report: Report, dry_run: bool) -> str:
    took = f"{report.seconds:.1f} s"
    if report.output is None:
        is_file = report.before is not None and report.before.file_size is not None
        return f"nothing was written ({took})" if is_file and not report.groups else took
    return (
        f"dry run: {report.output} was not written ({took})"
        if dry_run
        else f"output: {report.output} ({took})"
    )


def columns(*names: str, left: int = 0) -> Table:
    """An empty table: figures stand to the right, the last `left` columns to the left.

    In a narrow terminal the first column is folded and titles are broken at spaces, never inside a word.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(names[0], overflow="fold", min_width=max(8, len(names[0])))
    for place, name in enumerate(names[1:], 1):
        word = max(map(len, name.split()), default=0)
        side: Literal["left", "right"] = "left" if place >= len(names) - left else "right"
        table.add_column(name, justify=side, min_width=word)
    return table
