"""How much memory and time fusing a large ONNX file takes: python tools/bench_size.py [--quick] (see --help).

A model with external data is made, fused under GNU time -v (apt: package `time`), and copied as it is. While
fusing, the memory that the system cannot drop (RssAnon, RssShmem) is sampled. Two bounds are held: at most
three times the largest group plus 500 MB, and without measuring and verifying at most 1.5 times as long as
copying. A full run goes to benchmarks/size-MACHINE.json, --quick to out/benchmarks/; the time of small models
is that of starting up, so --quick judges their memory alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from tools.benchmark.machine import Machine, slug  # noqa: E402
from tools.benchmark.size import SizeResult, measure_size  # noqa: E402
from tools.benchmark.synthetic import Shape  # noqa: E402

FULL = {
    # 32 layers, 20 of them with attention: a chain of 13 FFNs.
    "8 GB, float32": Shape(32, 12, 2048, 8192),
    "8 GB, float16": Shape(28, 12, 3072, 12288, dtype="float16"),
    # One gate weight of 2.6 GB.
    "one weight above 2 GB": Shape(11, 10, 4096, 14336),
}
QUICK = {
    "500 MB, float32": Shape(16, 6, 768, 3072, 8000),
    "250 MB, bfloat16": Shape(16, 6, 768, 3072, 8000, "bfloat16"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 1 where a bound is broken or nothing was fused."""
    options = _parser().parse_args(arguments)
    cases = {
        name: shape for name, shape in (QUICK if options.quick else FULL).items() if options.case in name
    }
    console = Console() if sys.stdout.isatty() else Console(width=120)
    results = []
    for name, shape in cases.items():
        with Console(stderr=True).status(name):
            results.append(measure_size(name, shape, options.folder))
    console.print(draw(results))
    machine = Machine.here("cpu")
    default = ROOT / ("out/benchmarks" if options.quick or options.case else "benchmarks")
    path = (options.output or default) / f"size-{slug(machine.device_name)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine.to_dict(), "results": [each.to_dict() for each in results]}
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    console.print(f"\nWritten to {path}", highlight=False, soft_wrap=True)
    held = [each.groups and each.fits and (options.quick or each.is_fast) for each in results]
    return 0 if all(held) else 1


def draw(results: Sequence[SizeResult]) -> Table:
    """One row for each model."""
    table = Table(title="Memory and time of fusing large files")
    for heading in (
        "model",
        "weights",
        "largest group",
        "peak memory",
        "allowed",
        "copying",
        "fusing",
        "ratio",
    ):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for each in results:
        table.add_row(
            each.name, _gigabytes(each.weights), _gigabytes(each.largest_group), _gigabytes(each.peak),
            _gigabytes(each.allowed), f"{each.copying:.1f} s", f"{each.fusing:.1f} s", f"{each.ratio:.2f}",
        )  # fmt: skip
    return table


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Memory and time of fusing a large ONNX file.")
    parser.add_argument("--quick", action="store_true", help="two small models: to see that it works")
    parser.add_argument("--case", default="", metavar="TEXT", help="only models whose name holds it")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where the models are made (default: temporary)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
