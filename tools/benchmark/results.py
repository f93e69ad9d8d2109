"""The results as a JSON file, written after every case, and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxfuse.files import stage
from fxfuse.timing.rounds import Ratio, Timing
from fxfuse.versions import versions
from tools.benchmark.cases import Settings
from tools.benchmark.ceilings import Ceilings
from tools.benchmark.contest import Result
from tools.benchmark.entries import Entry
from tools.benchmark.machine import Machine

__all__ = ["SCHEMA", "Run", "draw", "to_dict", "write"]

SCHEMA = 2

HOW_TO_READ = (
    "Ratio = time unfused / time fused, the best of each side by round, the median over rounds: above 1 the "
    "fused form is faster. The brackets hold the least and the greatest round, which is the noise: where "
    "they enclose 1 (~), no difference was seen. Share: the time that reading the weights or computing the "
    "products takes at the measured ceilings, over the fused time."
)


@dataclass
class Run:
    """One run of the benchmark: where, how, the ceilings, and what was found so far."""

    machine: Machine
    settings: Settings
    ceilings: Ceilings
    results: list[Result] = field(default_factory=list)
    checks: dict[str, Any] | None = None


def to_dict(run: Run) -> dict[str, Any]:
    """All that was measured and what it was measured on, as plain data."""
    used = {entry.name: entry for result in run.results for entry in result.entries}
    return {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": run.settings.device,
        "machine": run.machine.to_dict(),
        "versions": versions(),
        "settings": asdict(run.settings),
        "ceilings": run.ceilings.to_dict(),
        "contestants": {name: _entry(entry) for name, entry in used.items()},
        "cases": [_case(result, run) for result in run.results],
        "checks": run.checks,
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


def draw(run: Run) -> RenderableType:
    """The table, with how to read it below."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("case", "runtime"):
        table.add_column(heading, no_wrap=True)
    for heading in ("unfused µs", "fused µs", "share", "ratio", "[rounds]"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for result in run.results:
        for row in _rows(result, run):
            table.add_row(*row)
    settings = run.settings
    title = (
        f"{run.machine.device_name}; threads: {settings.threads}; rounds: {settings.rounds}; p50 of a call"
    )
    parts: list[RenderableType] = [Text(title, style="bold"), Text(_ceilings(run.ceilings)), Text(), table]
    parts += [Text(), Text(HOW_TO_READ)]
    load = run.machine.load
    if load is not None and load > 0.5 and settings.device == "cpu":
        busy = f"The machine was not quiet (load {load:.1f} before the start): run again when it is."
        parts.append(Text(busy, style="bold"))
    parts += [Text(f"declined: {each}") for each in _told(run.results, "declined")]
    parts += [Text(f"failed: {each}", style="red") for each in _told(run.results, "failures")]
    parts += [Text(f"not measured: {r.case}: {r.not_measured}") for r in run.results if r.not_measured]
    return Group(*parts)


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "title": entry.title, "runtime": entry.runtime, "form": entry.form, "mode": entry.mode,
        "weights": entry.weights,
    }  # fmt: skip


def _case(result: Result, run: Run) -> dict[str, Any]:
    return {
        "name": str(result.case),
        **asdict(result.case),
        "weights": asdict(result.size) if result.size else None,
        "not_measured": result.not_measured,
        "floors": {name: asdict(floor) for name, floor in _floors(result, run).items()},
        "timings": {
            name: {**asdict(timing), "share": share_of(result, run, name)}
            for name, timing in result.timings.items()
        },
        "waited_us": result.waited_us,
        "prepared_s": result.prepared_s,
        "ratios": {
            pair.title: {**asdict(result.ratios[pair.title]), "unfused": pair.unfused, "fused": pair.fused}
            for pair in result.pairs
            if pair.title in result.ratios
        },
        "fused_groups": result.groups,
        "notes": result.notes,
        "relative_errors": result.relative_errors,
        "declined": result.declined,
        "failures": result.failures,
    }


def _floors(result: Result, run: Run) -> dict[str, Any]:
    if result.size is None:
        return {}
    kinds = {_kind(entry, result) for entry in result.entries}
    found = {kind: run.ceilings.floor(result.size.weights, result.case.tokens, kind) for kind in kinds}
    return {kind: floor for kind, floor in sorted(found.items()) if floor is not None}


def _kind(entry: Entry, result: Result) -> str:
    return result.case.dtype if entry.weights == "float" else entry.weights


def share_of(result: Result, run: Run, name: str) -> float | None:
    """The floor over the time of a contestant; None for the bound, whose weights are fewer."""
    entry = next(each for each in result.entries if each.name == name)
    floor = _floors(result, run).get(_kind(entry, result))
    if floor is None or entry.form == "bound":
        return None
    return float(floor.us / result.timings[name].p50_us)


def _rows(result: Result, run: Run) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    ratios = result.ratios
    for pair in result.pairs:
        if pair.title not in ratios:
            continue
        unfused, fused = (_fastest(side, result) for side in (pair.unfused, pair.fused))
        share = share_of(result, run, fused)
        rows.append(
            (
                pair.title, _time(result.timings[unfused]), _time(result.timings[fused]),
                f"{100 * share:.0f}%" if share is not None else "", *_ratio(ratios[pair.title]),
            )
        )  # fmt: skip
    return [(str(result.case) if index == 0 else "", *row) for index, row in enumerate(rows)]


def _fastest(names: Sequence[str], result: Result) -> str:
    return min((n for n in names if n in result.timings), key=lambda n: result.timings[n].p50_us)


def _time(timing: Timing) -> str:
    return f"{timing.p50_us:,.0f}" if timing.p50_us >= 100 else f"{timing.p50_us:,.1f}"


def _ratio(ratio: Ratio) -> tuple[str, str]:
    mark = "" if ratio.tells else "~"
    return f"{mark}{ratio.median:.2f}", f"[{ratio.least:.2f} - {ratio.greatest:.2f}]"


def _ceilings(ceilings: Ceilings) -> str:
    parts = [f"{name} {value:,.1f} GB/s" for name, value in ceilings.bandwidths.items()]
    parts += [f"{name} products {value:,.2f} TFLOP/s" for name, value in ceilings.rates.items()]
    return "ceilings: " + ", ".join(parts)


def _told(results: Sequence[Result], what: str) -> list[str]:
    return [f"{one.case}, {name}: {why}" for one in results for name, why in getattr(one, what).items()]
