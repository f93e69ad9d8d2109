"""Tables of Markdown, and what several of them say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["busy", "table"]


def busy(machine: Mapping[str, Any]) -> str:
    """A sentence about the load of a machine that measured on its processor; "" where there was none."""
    load = machine.get("load")
    if load is None or load <= 0.5 or machine.get("gpu"):
        return ""
    return f" The machine was not quiet: its load was {load:.1f} before the start."


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table, one line a row."""
    lines = ["| " + " | ".join(heading) + " |", "|" + " --- |" * len(heading)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
