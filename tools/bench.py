"""Time the demo model and bare chains, fused against not: python tools/bench.py [--quick] ... (see --help).

Contestants (torch eager, torch.compile with inductor and with fxfuse, ONNX Runtime on the plain and on the
fused file) run each in a process of its own, one at a time, taking turns. Every answer is checked against
float64 before it is timed. A full run goes to benchmarks/DEVICE.json, a partial one to out/benchmarks/.
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

from fxfuse.errors import FxfuseError  # noqa: E402
from tools.benchmark import results  # noqa: E402
from tools.benchmark.cases import CASES, QUICK, Case, Settings  # noqa: E402
from tools.benchmark.contest import measure  # noqa: E402
from tools.benchmark.machine import Machine, available_cores, slug  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 0, 1 where a contestant failed, 2 where nothing could be run."""
    options = _parser().parse_args(arguments)
    cases = _cases(options)
    console = Console() if sys.stdout.isatty() else Console(width=110)
    try:
        _check(options.device, cases)
        settings = _settings(options)
        machine = Machine.here(options.device)
        found = []
        with Console(stderr=True).status("starting") as status:
            for result in measure(cases, settings, status.update):
                found.append(result)
        console.print(results.draw(found, settings, machine))
        path = _folder(options) / f"{slug(machine.device_name)}.json"
        results.write(results.to_dict(found, settings, machine), path)
    except FxfuseError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: stopped; nothing was written", file=sys.stderr)
        return 130
    console.print(f"\nWritten to {path}", highlight=False, soft_wrap=True)
    return 1 if any(result.failures for result in found) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time the demo model and bare chains, fused against not.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=_positive, help="threads of both runtimes (default: all cores)")
    parser.add_argument("--rounds", type=_positive, help="rounds that each contestant runs (default: 5)")
    parser.add_argument(
        "--cases", type=_pattern, default="", metavar="REGEX", help="only cases such as demo/32"
    )
    parser.add_argument(
        "--quick", action="store_true", help="two cases, two short rounds: to see that it works"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the JSON file")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    rounds, seconds = (2, 0.05) if options.quick else (5, 0.25)
    threads = options.threads or available_cores()
    return Settings(options.device, threads, options.rounds or rounds, seconds)


def _cases(options: argparse.Namespace) -> Sequence[Case]:
    if options.quick and not options.cases:
        return QUICK
    return [case for case in CASES if re.search(options.cases, str(case))]


def _folder(options: argparse.Namespace) -> Path:
    """Only a full run replaces the figures that are kept."""
    partial = options.quick or options.cases
    return options.output or Path("out/benchmarks" if partial else "benchmarks")


def _check(device: str, cases: Sequence[Case]) -> None:
    if not cases:
        raise FxfuseError(f"no case matches --cases; there are {', '.join(map(str, CASES))}.")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise FxfuseError("there is no CUDA device that torch can use: choose --device cpu.")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None
    return text


if __name__ == "__main__":
    sys.exit(main())
