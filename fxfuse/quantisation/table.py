"""The part of the report's table that tells what quantising did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fxfuse.naming import printable, span, spans
from fxfuse.quantisation.records import Quantisation

__all__ = ["quantised_parts"]


def quantised_parts(found: Quantisation | None) -> list[RenderableType]:
    """What rich can print of it; nothing where nothing was quantised."""
    if found is None:
        return []
    parts: list[RenderableType] = [Text()]
    parts += [_groups(found)] if found.groups else []
    parts += [Text(printable(line), overflow="fold") for line in _lines(found)]
    return parts


def _groups(found: Quantisation) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"as {found.kind}", overflow="fold", min_width=8)
    for name in ("error", "SQNR dB", "kept"):
        table.add_column(name, justify="right")
    for group in found.groups:
        kept = "float" if group.kept_float else found.kind
        table.add_row(
            printable(span(group.blocks)), f"{group.relative_error:.1e}", f"{group.sqnr_db:.1f}", kept
        )
    return table


def _lines(found: Quantisation) -> list[str]:
    change = 100 * (found.bytes_after - found.bytes_before) / max(found.bytes_before, 1)
    lines = [
        f"{found.products} products as {found.kind}: {found.bytes_before:,} -> {found.bytes_after:,} bytes "
        f"({change:+.1f} %)"
    ]
    for name, figures in (
        ("the fused float model", found.against_fused),
        ("the original", found.against_original),
    ):
        lines += [f"as {found.kind} against {name}: {_figures(figures)}"] if figures else []
    places: dict[str, list[str]] = {}
    for miss in found.left:
        places.setdefault(miss.reason, []).append(miss.where)
    return lines + [f"left float: {spans(where)}: {reason}" for reason, where in places.items()]


def _figures(figures: Mapping[str, Any]) -> str:
    told = f"relative error {figures['relative_error']:.2e}"
    if figures.get("kl") is None:
        return told
    return (
        f"KL {figures['kl']:.2e} nats/token, top-1 agreement {100 * figures['top1_agreement']:.1f} %, {told}"
    )
