"""Write docs/performance.md and its plots from the runs in benchmarks/: python -m tools.performance."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fxfuse.report_file import write_text
from tools.benchmark.page import render
from tools.benchmark.results import SCHEMA

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read every run of this schema and write the page; returns 1 where there is none."""
    parser = argparse.ArgumentParser(description="Draw the runs of tools/bench.py as docs/performance.md.")
    parser.add_argument("--from", dest="source", type=Path, default=ROOT / "benchmarks", metavar="DIR")
    parser.add_argument("--to", type=Path, default=ROOT / "docs", metavar="DIR")
    options = parser.parse_args(arguments)
    runs, others = [], []
    for path in sorted(options.source.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("schema") == SCHEMA and "ceilings" in found:
            runs.append(found)
        elif isinstance(found, dict):
            others.append(found)
    if not runs:
        print(f"There is no run of tools/bench.py in {options.source}: run it first.")
        return 1
    page, plots = render(runs, others)
    folder = options.to / "performance"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for name, drawn in plots.items():
        write_text(folder / name, drawn)
    write_text(options.to / "performance.md", page)
    print(f"Written to {options.to / 'performance.md'}, with {len(plots)} plots")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
