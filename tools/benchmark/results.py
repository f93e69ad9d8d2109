"""The results as a JSON file and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxfuse.files import stage
from fxfuse.timing.rounds import Ratio, Timing
from fxfuse.versions import versions
from tools.benchmark.cases import CONTESTANTS, PAIRS, Settings, contestants_on, dtype_of
from tools.benchmark.contest import Result
from tools.benchmark.machine import Machine

__all__ = ["draw", "to_dict", "write"]

SCHEMA = 1

HOW_TO_READ = (
    "Ratio = time unfused / time fused, the median over rounds: above 1 the fused form is faster. The "
    "brackets hold the least and the greatest round, which is the noise: where they enclose 1 (~), no "
    "difference was seen."
)


def to_dict(results: Sequence[Result], settings: Settings, machine: Machine) -> dict[str, Any]:
    """All that was measured and what it was measured on, as plain data."""
    names = contestants_on(settings.device)
    return {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": settings.device,
        "machine": machine.to_dict(),
        "versions": versions(),
        "settings": asdict(settings),
        "contestants": {
            name: {"title": CONTESTANTS[name], "dtype": dtype_of(name, settings.device)} for name in names
        },
        "cases": [_case(result) for result in results],
    }


def write(content: dict[str, Any], path: Path) -> None:
    """Write the JSON file whole or not at all, over an older one.

    Raises:
        FxfuseError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with stage(path, force=True) as staging:
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        staging.path(path.name).write_text(text, encoding="utf-8")


def draw(results: Sequence[Result], settings: Settings, machine: Machine) -> RenderableType:
    """The table, with how to read it below."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("case", "runtime"):
        table.add_column(heading, no_wrap=True)
    for heading in ("unfused µs", "(p90)", "fused µs", "(p90)", "ratio", "[rounds]"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for result in results:
        for row in _rows(result):
            table.add_row(*row)
    title = (
        f"{machine.device_name}; threads: {settings.threads}; rounds: {settings.rounds}; p50 (p90) of a call"
    )
    parts: list[RenderableType] = [Text(title, style="bold"), Text(), table, Text(), Text(HOW_TO_READ)]
    if machine.load is not None and machine.load > 0.5:
        busy = f"The machine was not quiet (load {machine.load:.1f} before the start): run again when it is."
        parts.append(Text(busy, style="bold"))
    parts += [Text(f"failed: {each}", style="red") for each in _failures(results)]
    return Group(*parts)


def _case(result: Result) -> dict[str, Any]:
    return {
        "name": str(result.case),
        **asdict(result.case),
        "timings": {name: asdict(timing) for name, timing in result.timings.items()},
        "ratios": {title: asdict(ratio) for title, ratio in result.ratios.items()},
        "fused_groups": result.groups,
        "relative_errors": result.relative_errors,
        "failures": result.failures,
    }


def _rows(result: Result) -> list[tuple[str, ...]]:
    ratios = result.ratios
    rows = [("torch eager", *_times(result.timings.get("eager")))]
    for pair in PAIRS:
        unfused, fused = result.timings.get(pair.unfused), result.timings.get(pair.fused)
        if unfused or fused:
            ratio = _ratio(ratios[pair.title]) if pair.title in ratios else ()
            rows.append((pair.title, *_times(unfused), *_times(fused), *ratio))
    return [(str(result.case) if index == 0 else "", *row) for index, row in enumerate(rows)]


def _times(timing: Timing | None) -> tuple[str, str]:
    return ("-", "") if timing is None else (f"{timing.p50_us:,.0f}", f"({timing.p90_us:,.0f})")


def _ratio(ratio: Ratio) -> tuple[str, str]:
    mark = "" if ratio.tells else "~"
    return f"{mark}{ratio.median:.2f}", f"[{ratio.least:.2f} - {ratio.greatest:.2f}]"


def _failures(results: Sequence[Result]) -> list[str]:
    return [
        f"{one.case}, {CONTESTANTS[name]}: {why}" for one in results for name, why in one.failures.items()
    ]
