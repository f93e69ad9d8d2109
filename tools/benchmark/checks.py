"""tools/bench.py --check: every way to run a chain against float64, and norms of large values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxfuse.timing.workers import Failure
from tools.benchmark.cases import Case, Settings
from tools.benchmark.contest import Clock, Result, measure
from tools.benchmark.crew import Process

__all__ = ["check", "check_norms", "draw"]

_CASES = {
    "cpu": [Case("chain-256", tokens) for tokens in (1, 32)],
    "cuda": [
        Case("chain-1024", tokens, dtype)
        for dtype in ("float16", "bfloat16", "float32")
        for tokens in (1, 32)
    ],
}


def check(
    settings: Settings,
    progress: Callable[[str], None],
    clock: Clock,
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """All checks as plain data: "norms", "answers", and "failures" as sentences."""
    found = check_norms(settings, progress)
    save(found)
    quick = replace(settings, rounds=0, autotuned=(), chosen=False, checks=True)
    for result in measure(_CASES[settings.device], quick, progress, clock):
        _add(found, result)
        save(found)
    return found


def check_norms(settings: Settings, progress: Callable[[str], None]) -> dict[str, Any]:
    """What `check` finds, with the norms only."""
    found: dict[str, Any] = {"norms": [], "answers": [], "failures": []}
    progress("norms of large values")
    factory = "tools.benchmark.norm_checks:open_prober"
    with Process(factory, settings.device, quiet=not settings.verbose) as prober:
        try:
            found["norms"] = prober.ask("probe")
        except Failure as failure:
            found["failures"].append(f"norms: {failure}")
    bad = [one for one in found["norms"] if one["verdict"] != "good"]
    found["failures"] += [f"{_name(one)}: {one['verdict']}" for one in bad]
    return found


def _add(found: dict[str, Any], result: Result) -> None:
    case = str(result.case)
    if result.not_measured:
        found["failures"].append(f"{case}: {result.not_measured}")
    for entry in result.entries:
        error, why = result.relative_errors.get(entry.name), result.failures.get(entry.name)
        if error is None and why is None:
            continue
        found["answers"].append(
            {"case": case, "contestant": entry.name, "title": entry.title, "error": error, "failure": why}
        )
        if why is not None:
            found["failures"].append(f"{case}, {entry.title}: {why}")


def draw(found: dict[str, Any]) -> RenderableType:
    """Both tables and the failures."""
    answers = _table("case", "contestant", "relative error against float64" if found["answers"] else "")
    for one in found["answers"]:
        error = "failed" if one["error"] is None else f"{one['error']:.1e}"
        answers.add_row(one["case"], one["title"], error)
    norms = _table("norm, type, provider", "input", "zeros", "NaN", "Inf", "relative error", "")
    for one in found["norms"]:
        counts = (str(one[name]) if one[name] is not None else "" for name in ("zeros", "nan", "inf"))
        error = "" if one["error"] is None else f"{one['error']:.1e}"
        norms.add_row(
            f"{one['norm']}, {one['dtype']}, {one['provider']}", one["input"], *counts, error, one["verdict"]
        )
    told = [Text(f"failed: {each}", style="red") for each in found["failures"]]
    return Group(answers, Text(), norms, Text(), *told)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading)
    return table


def _name(one: dict[str, Any]) -> str:
    return f"{one['norm']} in {one['dtype']} on {one['provider']}, {one['input']}"
