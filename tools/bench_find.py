"""How long finding chains takes in deep graphs: python tools/bench_find.py [--blocks N] (see --help).

A graph of N blocks and one of ten times as many are read and searched, in both kinds of graph. Ten times the
graph should take about ten times as long. Times are of the processor, so other programs disturb them little.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from fxfuse.frontends.onnx_graph import read_graph  # noqa: E402
from fxfuse.passes.chains import find_chains  # noqa: E402
from fxfuse.passes.fx.view import FxView  # noqa: E402
from fxfuse.passes.view import View  # noqa: E402
from tools.benchmark.deep import deep_fx, deep_onnx  # noqa: E402
from tools.benchmark.machine import Machine, slug  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 1 where a chain is not found whole."""
    options = _parser().parse_args(arguments)
    sizes = (options.blocks, 10 * options.blocks)
    results = [measure(kind, blocks) for kind in ("onnx", "fx") for blocks in sizes]
    console = Console(width=100)
    console.print(draw(results))
    machine = Machine.here("cpu")
    folder = options.output or ROOT / ("benchmarks" if options.blocks == 1000 else "out/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"find-{slug(machine.device_name)}.json"
    path.write_text(json.dumps({"machine": machine.to_dict(), "results": results}, indent=2) + "\n")
    console.print(f"\nWritten to {path}", highlight=False, soft_wrap=True)
    return 0 if all(each["chain"] == each["blocks"] for each in results) else 1


def measure(kind: str, blocks: int) -> dict[str, Any]:
    """Read and search one graph; seconds of both."""
    prepare = {"onnx": _onnx, "fx": _fx}[kind]
    nodes, read = prepare(blocks)
    gc.collect()
    started = time.process_time()
    view = read()
    found_from = time.process_time()
    found = find_chains(view)
    ended = time.process_time()
    return {
        "kind": kind, "blocks": blocks, "nodes": nodes, "reading": round(found_from - started, 3),
        "finding": round(ended - found_from, 3), "chain": max(len(c.blocks) for c in found.chains),
    }  # fmt: skip


def _onnx(blocks: int) -> tuple[int, Callable[[], View]]:
    model = deep_onnx(blocks)
    return len(model.graph.node), lambda: read_graph(model, Path())


def _fx(blocks: int) -> tuple[int, Callable[[], View]]:
    module, weights = deep_fx(blocks)
    return len(module.graph.nodes), lambda: FxView(module, weights)


def draw(results: Sequence[dict[str, Any]]) -> Table:
    """One row for each graph, with how many times as long as the one above a tenth of its size."""
    table = Table(title="Finding chains")
    for heading in ("graph", "blocks", "nodes", "reading", "finding", "times as long"):
        table.add_column(heading, justify="left" if heading == "graph" else "right")
    for small, each in zip([None, *results], results, strict=False):
        times = ""
        if small is not None and small["kind"] == each["kind"]:
            times = f"{each['finding'] / max(small['finding'], 1e-3):.1f}"
        cells = (f"{each['reading']:.2f} s", f"{each['finding']:.2f} s", times)
        table.add_row(each["kind"], str(each["blocks"]), str(each["nodes"]), *cells)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time finding chains in deep graphs.")
    parser.add_argument("--blocks", type=int, default=1000, metavar="N", help="of the smaller graph")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
