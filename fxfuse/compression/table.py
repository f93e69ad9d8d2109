"""The stages as a table for a terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fxfuse.compression.records import Compressed
from fxfuse.naming import printable
from fxfuse.page.records import Stage

__all__ = ["render"]

_WIDTH = 110


def render(found: Compressed) -> str:
    """One row a stage, the notes, and where the result lies."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("stage")
    for title in ("nats/token", "KL to the stock model", "depth", "seconds"):
        table.add_column(title, justify="right")
    for stage in found.stages:
        seconds = found.seconds.get(stage.name)
        table.add_row(stage.name, *_figures(stage), "" if seconds is None else f"{seconds:.0f}")
    notes = [Text(printable(f"note: {note}"), style="dim") for note in found.notes]
    ending = [Text(f"written: {found.onnx}")] if found.onnx else []
    console = Console(
        file=StringIO(), width=_WIDTH, force_terminal=False, color_system=None, legacy_windows=False
    )
    console.print(Group(table, *notes, *ending))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip("\n").split("\n"))


def _figures(stage: Stage) -> tuple[str, str, str]:
    return (
        _with_error(stage.loss, stage.loss_error),
        _with_error(stage.kl, stage.kl_error),
        "" if stage.depth is None else str(stage.depth),
    )


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if error is None or error != error else f"{value:.4f} ± {error:.4f}"
