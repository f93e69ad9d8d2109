"""What the torch.compile backend costs: python tools/bench_backend.py [--quick] [--device cuda] (see --help).

Compile time beside inductor alone, the work at every call beside a decode step, and memory with two copies of
the weights and with one. A full run goes to benchmarks/backend-DEVICE.json, a quick one to out/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # for `tools` and `models`, here and in the processes that are started

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from fxfuse.timing.workers import Failure  # noqa: E402
from fxfuse.versions import versions  # noqa: E402
from tools.benchmark.backend_cost import Shape, calls, compiling, memory  # noqa: E402
from tools.benchmark.machine import Machine, slug  # noqa: E402

MOST_COMPILING = 1.10
MOST_CALLING = 0.01


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 0, 1 where a bar is missed, 2 where something failed."""
    options = _parser().parse_args(arguments)
    rounds = 1 if options.quick else options.rounds
    shape = Shape(
        options.hidden, 14 if options.quick else 32, options.tokens, options.threads, options.device
    )
    machine = Machine.here(options.device)
    try:
        with Console(stderr=True).status("starting") as status:
            results = {
                "compile": compiling(shape, rounds, status.update),
                "call": calls(shape, rounds, 1.0 if options.quick else 5.0, status.update),
                "memory": memory(replace(shape, hidden_size=2 * options.hidden), status.update),
            }
    except Failure as failure:
        print(f"bench_backend: {failure}", file=sys.stderr)
        return 2
    console = Console() if sys.stdout.isatty() else Console(width=110)
    console.print(draw(results))
    folder = options.output or ROOT / ("out/benchmarks" if options.quick else "benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"backend-{slug(machine.device_name)}.json"
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    content = {"date": date, "machine": machine.to_dict(), "versions": versions(), **results}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"\nWritten to {path}", highlight=False, soft_wrap=True)
    return int(
        results["compile"]["ratio"] > MOST_COMPILING or not 0 <= results["call"]["share"] <= MOST_CALLING
    )


def draw(results: dict[str, Any]) -> Table:
    """One row for each figure, with its bar where it has one."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("what", "measured", "bar"):
        table.add_column(heading)
    compiled, call = results["compile"], results["call"]
    seconds = {
        name: statistics.median(each["seconds"] for each in rounds)
        for name, rounds in compiled["rounds"].items()
    }
    own = statistics.median(each["fxfuse"] for each in compiled["rounds"]["fxfuse"])
    least, most = min(compiled["ratios"]), max(compiled["ratios"])
    layers, tokens = compiled["shape"]["layers"], compiled["shape"]["tokens"]
    table.add_row(f"first call, {layers} layers, {tokens} tokens: inductor", f"{seconds['inductor']:.1f} s")
    table.add_row("  fxfuse, then inductor", f"{seconds['fxfuse']:.1f} s, {own:.2f} s of it fxfuse's own")
    ratio = f"{compiled['ratio']:.3f} [{least:.3f}, {most:.3f}]"
    table.add_row("  ratio, the median of rounds", ratio, f"at most {MOST_COMPILING:g}")
    table.add_row("every call: check for stale weights", f"{call['check_us']:.1f} µs")
    table.add_row("  the demo model's step of one token", f"{call['step_us']:,.0f} µs")
    table.add_row("  share of the step", f"{call['share']:.2%}", f"at most {MOST_CALLING:.0%}")
    for name, each in results["memory"]["copies"].items():
        added = f"{each['added'] / 1e6:+,.1f} MB of tensors, {each['added_to_process'] / 1e6:+,.1f} MB in all"
        table.add_row(f"memory, {name}", f"{each['after'] / 1e6:,.1f} MB ({added})")
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure what the torch.compile backend costs.")
    parser.add_argument("--quick", action="store_true", help="one round of a smaller model")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each contestant (default: 5)")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size; the memory's is twice that")
    parser.add_argument("--tokens", type=int, default=128, help="of the prompt that is compiled with")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
