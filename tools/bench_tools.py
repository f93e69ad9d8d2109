"""fxfuse beside other tools on one ONNX file: python tools/bench_tools.py [--quick] (see --help).

    fxfuse, measuring and verifying included · onnxslim · onnxruntime.transformers.optimizer · onnxscript

Each tool runs in a process of its own, in turn, for several rounds, as its command line is used; the model is
read into the system's cache before. fxfuse also waits until its output is on the disk, and the others do not.
Two bounds are held: fxfuse ends before onnxslim and before onnxruntime.transformers.optimizer, with at most
half the memory of each. A full run goes to benchmarks/tools-MACHINE.json, --quick to out/benchmarks/.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from tools.benchmark.machine import Machine, slug  # noqa: E402
from tools.benchmark.others import TOOLS, ToolResult, ToolRun, missing, output_of, run_tool  # noqa: E402
from tools.benchmark.synthetic import Shape, write_decoder  # noqa: E402

# 16 layers, 4 of them with attention: a chain of 13 FFNs. In float32, the others need 12 and more than 22 GB.
FULL = Shape(16, 12, 2048, 8192, dtype="float16")
QUICK = Shape(6, 4, 512, 2048, 2000, dtype="float16")
JUDGED = ("onnxslim", "onnxruntime.transformers.optimizer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 1 where a bound is broken, 2 where a tool is not installed."""
    options = _parser().parse_args(arguments)
    if (problem := missing(TOOLS)) is not None:
        print(problem, file=sys.stderr)
        return 2
    shape = QUICK if options.quick else FULL
    console = Console() if sys.stdout.isatty() else Console(width=130)
    machine = Machine.here("cpu")
    results, weights = measure(shape, options.rounds, options.folder)
    console.print(draw(results, weights))
    bounds = judge(results)
    for told, held in () if options.quick else bounds.items():
        console.print(f"{'held' if held else 'BROKEN'}: {told}", highlight=False)
    facts = {
        "kind": "tools", "machine": machine.to_dict(), "versions": versions(),
        "model": asdict(shape) | {"weights": weights, "largest_group": shape.largest_group},
        "results": [each.to_dict() for each in results], "bounds": bounds,
    }  # fmt: skip
    folder = options.output or ROOT / ("out/benchmarks" if options.quick else "benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tools-{slug(machine.device_name)}.json"
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    console.print(f"\nWritten to {path}", highlight=False, soft_wrap=True)
    return 0 if options.quick or all(bounds.values()) else 1


def measure(shape: Shape, rounds: int, folder: Path | None) -> tuple[list[ToolResult], int]:
    """All tools on one model, and the bytes of its weights; everything that was made is removed again."""
    runs: dict[str, list[ToolRun]] = {tool.name: [] for tool in TOOLS}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as place, Console(stderr=True).status("writing") as status:
        model = Path(place) / "model.onnx"
        weights = write_decoder(shape, model)
        for number in range(rounds):
            for tool in TOOLS:
                status.update(f"round {number + 1} of {rounds}: {tool.name}")
                os.sync()
                with tempfile.TemporaryDirectory(dir=place) as own:
                    runs[tool.name].append(run_tool(tool, model, Path(own)))
                    if tool.name not in found and not runs[tool.name][-1].problem:
                        found[tool.name] = output_of(model, Path(own) / "out.onnx")
    return [ToolResult(name, tuple(each), found.get(name, {})) for name, each in runs.items()], weights


def judge(results: Sequence[ToolResult]) -> dict[str, bool]:
    """The bounds, in words, and whether each is held; a tool that fails is behind."""
    own, *others = results
    bounds = {"fxfuse writes a valid model": own.problem is None}
    for each in others:
        if each.name in JUDGED:
            failed = any(run.problem for run in each.runs)
            bounds[f"fxfuse ends before {each.name}"] = failed or own.seconds < each.seconds
            bounds[f"at most half the memory of {each.name}"] = 2 * own.peak <= each.peak
    return bounds


def draw(results: Sequence[ToolResult], weights: int) -> Table:
    """One row for each tool."""
    table = Table(
        title=f"Tools on one decoder of {weights / 1e9:.2f} GB, medians of {len(results[0].runs)} runs"
    )
    for heading in (
        "tool",
        "seconds",
        "on the disk",
        "CPU s",
        "memory",
        "with files",
        "nodes",
        "products",
        "what",
    ):
        table.add_column(heading, justify="left" if heading in ("tool", "what") else "right")
    for each in results:
        middle = sorted(each.runs, key=lambda run: run.seconds)[len(each.runs) // 2]
        nodes, products = (" > ".join(map(str, each.found.get(key, ["-"]))) for key in ("nodes", "products"))
        table.add_row(
            each.name, f"{each.seconds:.1f}", f"{middle.synced:.1f}", f"{middle.cpu:.1f}",
            f"{each.peak / 1e9:.2f} GB", f"{each.rss / 1e9:.2f} GB", nodes, products, _what(each),
        )  # fmt: skip
    return table


def _what(result: ToolResult) -> str:
    if result.problem is not None:
        return result.problem
    new = ", ".join(f"{count} {name}" for name, count in result.found["new"].items())
    return f"valid{f': {new}' if new else ''}"


def versions() -> dict[str, str]:
    """What was compared."""
    names = ("onnxslim", "onnxruntime-gpu", "onnxruntime", "onnxscript", "onnx", "torch")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="fxfuse beside other tools on one ONNX file.")
    parser.add_argument(
        "--quick", action="store_true", help="a small model, judged by nothing: to see that it works"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool runs (default: 3)")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where the model is made (default: temporary)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
