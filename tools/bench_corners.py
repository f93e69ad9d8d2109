"""Fused or not, quantised or not: python tools/bench_corners.py [--quick] [--models RE] ... (see --help).

Chains of 8 blocks with random weights and the trained demo model, each as fp32, int8 and int4, unfused and
fused, in ONNX Runtime on the CPU: how fast each is, and what each step loses. A full run goes to
benchmarks/corners-DEVICE.json, a partial one to out/benchmarks/.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # for `tools` and `models`, here and in the processes that are started

from rich.console import Console  # noqa: E402

from fxfuse.timing.workers import Failure  # noqa: E402
from tools.benchmark import corner_results as results  # noqa: E402
from tools.benchmark.corners import Pace, measure  # noqa: E402
from tools.benchmark.machine import Machine, available_cores, slug  # noqa: E402

MODELS = ("chain-256", "chain-1024", "chain-2048", "demo")
TOKENS = (1, 8, 32, 128)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 0, 1 where something failed, 2 where nothing could be run."""
    options = _parser().parse_args(arguments)
    models = [model for model in MODELS if re.search(options.models, model)]
    if not models:
        print(f"bench_corners: no model matches --models; there are {', '.join(MODELS)}.", file=sys.stderr)
        return 2
    pace = _pace(options)
    machine, found, failed = Machine.here("cpu"), [], False
    with Console(stderr=True).status("starting") as status:
        for model in models:
            try:
                found.append(measure(model, options.tokens, pace, status.update))
            except Failure as failure:
                print(f"bench_corners: {model}: {failure}", file=sys.stderr)
                failed = True
    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(results.draw(found))
    console.print(f"\n{results.LEGEND}")
    path = _folder(options) / f"corners-{slug(machine.device_name)}.json"
    results.write(results.to_dict(found, pace, machine), path)
    console.print(f"\nWritten to {path}", highlight=False, soft_wrap=True)
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time and judge models fused or not, quantised or not.")
    parser.add_argument("--models", default="", metavar="RE", help=f"only some of {', '.join(MODELS)}")
    parser.add_argument("--tokens", type=_lengths, default=TOKENS, metavar="N,N", help="default: 1,8,32,128")
    parser.add_argument("--threads", type=int, help="threads of ONNX Runtime (default: all cores)")
    parser.add_argument("--rounds", type=int, help="rounds that each file runs (default: 7)")
    parser.add_argument("--quick", action="store_true", help="short rounds: to see that it works")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the JSON file")
    return parser


def _pace(options: argparse.Namespace) -> Pace:
    threads = options.threads or available_cores()
    if options.quick:
        return Pace(threads, options.rounds or 2, 0.03, 0.01, 4096)
    return Pace(threads, options.rounds or Pace.rounds)


def _folder(options: argparse.Namespace) -> Path:
    """Only a full run replaces the figures that are kept."""
    partial = options.quick or options.models or options.tokens != TOKENS
    return options.output or ROOT / ("out/benchmarks" if partial else "benchmarks")


def _lengths(text: str) -> tuple[int, ...]:
    lengths = tuple(int(each) for each in text.split(","))
    if min(lengths) < 1:
        raise argparse.ArgumentTypeError(f"{text} holds a number under 1")
    return lengths


if __name__ == "__main__":
    sys.exit(main())
