"""What fusing a large checkpoint on disk takes: python tools/bench_checkpoint.py [--quick] (see --help).

A checkpoint of random weights is made, copied with cp and sync, and fused under GNU time -v (apt: package
`time`), in turn; then fused again with kills at random moments, and its bytes compared with those of the
undisturbed run; and once with no room. Two bounds are held: memory of the largest group plus 500 MB, files
mapped or not, and twice the time of copying. A full run goes to benchmarks/checkpoint-MACHINE.json and needs
32 GB of disk; --quick, whose time is that of starting up, to out/benchmarks/.
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

from fxfuse.versions import versions  # noqa: E402
from tools.benchmark.checkpoint import CheckpointResult, measure_checkpoint  # noqa: E402
from tools.benchmark.machine import Machine, slug  # noqa: E402
from tools.benchmark.random_checkpoint import Stack  # noqa: E402

FULL = {
    # 32 layers, 20 of them with attention: a run of 13 FFNs.
    "8 GB, bfloat16, gains folded": Stack(32, 12, 4096, 7680),
    "8 GB, bfloat16, one gain": Stack(32, 12, 4096, 7680, same_gains=True),
}
QUICK = {
    "230 MB, bfloat16, gains folded": Stack(16, 6, 768, 2048),
    "280 MB, float32, one gain": Stack(8, 3, 768, 2048, dtype="F32", same_gains=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 1 where a bound is broken."""
    options = _parser().parse_args(arguments)
    found = {name: each for name, each in (QUICK if options.quick else FULL).items() if options.case in name}
    console = Console() if sys.stdout.isatty() else Console(width=160)
    size = 50_000_000 if options.quick else 2_000_000_000
    results = []
    for name, stack in found.items():
        with Console(stderr=True).status(name):
            results.append(
                measure_checkpoint(
                    name, stack, folder=options.folder, kills=options.kills, rounds=options.rounds,
                    shard_size=size,
                )
            )  # fmt: skip
    console.print(draw(results))
    machine = Machine.here("cpu")
    default = ROOT / ("out/benchmarks" if options.quick or options.case else "benchmarks")
    path = (options.output or default) / f"checkpoint-{slug(machine.device_name)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "kind": "checkpoint", "machine": machine.to_dict(), "versions": versions(),
        "results": [each.to_dict() for each in results],
    }  # fmt: skip
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    console.print(f"\nWritten to {path}", highlight=False, soft_wrap=True)
    return 0 if all(each.holds and (options.quick or each.ratio <= 2) for each in results) else 1


def draw(results: Sequence[CheckpointResult]) -> Table:
    """One row for each checkpoint."""
    table = Table(title="Memory and time of fusing checkpoints on disk")
    for heading in (
        "checkpoint", "weights", "largest group", "peak memory", "allowed", "cp + sync", "fusing", "ratio",
        "kills", "same bytes", "full disk",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "checkpoint" else "right")
    for each in results:
        table.add_row(
            each.name, _gigabytes(each.weights), _gigabytes(each.largest_group), _gigabytes(each.rss),
            _gigabytes(each.allowed), _seconds(each.copying), _seconds(each.fusing), f"{each.ratio:.2f}",
            str(each.kills), "yes" if each.same else "NO", "clean" if each.full["clean"] else "NOT CLEAN",
        )  # fmt: skip
    return table


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _seconds(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in sorted(values)) + " s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Memory and time of fusing a large checkpoint on disk.")
    parser.add_argument("--quick", action="store_true", help="two small ones: to see that it works")
    parser.add_argument("--case", default="", metavar="TEXT", help="only checkpoints whose name holds it")
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="copies and runs in turn (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where all is made (default: temporary)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
