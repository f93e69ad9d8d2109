"""Time models and bare chains, fused against the alternatives: python tools/bench.py (see --help).

Contestants (torch eager, torch.compile with inductor and with fxfuse, ONNX Runtime on the plain file, after
other optimisers and on the fused file) run each in a process of its own, one at a time, taking turns. Every
answer is checked against float64 before it is timed, and every time is held against what the machine can do
at most, measured in the same run. A full run goes to benchmarks/DEVICE.json, a partial one to
out/benchmarks/; the file is written anew after every case. --check only checks answers.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # for `tools` and `models`, here and in the processes that are started

from rich.console import Console  # noqa: E402

from fxfuse.errors import FxfuseError  # noqa: E402
from fxfuse.timing.workers import Failure  # noqa: E402
from tools.benchmark import results  # noqa: E402
from tools.benchmark.cases import QUICK, Case, Settings, cases_on, shape_of  # noqa: E402
from tools.benchmark.ceilings import BYTES, Ceilings  # noqa: E402
from tools.benchmark.contest import Clock, measure  # noqa: E402
from tools.benchmark.crew import Process  # noqa: E402
from tools.benchmark.machine import Machine, available_cores, slug  # noqa: E402

HURRIED = 8
"""Minutes: shorter runs on CUDA leave max-autotune out, which compiles for long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 0, 1 where a contestant failed, 2 where nothing could be run."""
    options = _parser().parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    try:
        cases = _cases(options)
        _check(options.device, cases)
        settings = _settings(options)
        run = results.Run(Machine.here(options.device), settings, Ceilings())
        path = _folder(options) / f"{slug(run.machine.device_name)}{'-check' if options.check else ''}.json"
        _limit_compilers(settings)
        failed = _run(run, cases, options, path)
    except FxfuseError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: stopped; what was complete is in the file", file=sys.stderr)
        return 130
    if run.results:
        console.print(results.draw(run))
    if run.checks is not None:
        from tools.benchmark.checks import draw

        console.print(draw(run.checks))
    console.print(f"\nWritten to {path}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _run(run: results.Run, cases: Sequence[Case], options: argparse.Namespace, path: Path) -> bool:
    """Measure and write after every case; whether anything failed."""
    begin = time.monotonic()
    clock = Clock(begin + 60 * options.minutes) if options.minutes else Clock()
    progress = _progress(begin)
    if options.check:
        from tools.benchmark.checks import check

        run.checks = check(run.settings, progress, clock, lambda found: _save(run, path, found))
        _save(run, path, run.checks)
        return bool(run.checks["failures"])
    progress("measuring the machine's ceilings")
    sizes = _sizes(cases)
    run.ceilings = _measure_ceilings(run.settings, sizes, small=options.quick)
    _save(run, path)
    if run.settings.device == "cuda":
        from tools.benchmark.checks import check_norms

        run.checks = check_norms(run.settings, progress)
        _save(run, path)
    for result in measure(cases, run.settings, progress, clock):
        run.results.append(result)
        _save(run, path)
    if run.settings.device == "cpu" and not options.quick:
        progress("measuring the machine's ceilings again")
        run.ceilings = run.ceilings.best(_measure_ceilings(run.settings, sizes, small=False))
        _save(run, path)
    return any(result.failures for result in run.results)


def _save(run: results.Run, path: Path, checks: dict[str, object] | None = None) -> None:
    if checks is not None:
        run.checks = checks
    results.write(results.to_dict(run), path)


def _sizes(cases: Sequence[Case]) -> list[float]:
    """MB of the weights of bare chains in the types that are timed."""
    shapes = {shape for case in cases if (shape := shape_of(case.model)) is not None}
    found = {each.weights * BYTES[kind] / 1e6 for each in shapes for kind in ("float32", "int8", "int4")}
    return sorted(found)


def _measure_ceilings(settings: Settings, sizes: Sequence[float], *, small: bool) -> Ceilings:
    factory = "tools.benchmark.ceilings:open_meter"
    with Process(factory, settings.device, settings.threads, small, sizes, quiet=True) as meter:
        try:
            found: Ceilings = meter.ask("measure")
        except Failure as failure:
            return Ceilings(failures={"all": str(failure)})
    return found


def _progress(begin: float) -> Callable[[str], None]:
    def tell(text: str) -> None:
        print(f"{time.monotonic() - begin:6.0f} s  {text}", file=sys.stderr, flush=True)

    return tell


def _limit_compilers(settings: Settings) -> None:
    """Many contestants compile at once on CUDA: each with a few processes of inductor's, not one a core."""
    if settings.device == "cuda":
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time models and bare chains, fused against not.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=_positive, help="threads of both runtimes (default: all cores)")
    parser.add_argument("--rounds", type=_positive, help="rounds of each seating (default: 5)")
    parser.add_argument(
        "--seatings", type=_positive,
        help="how often contestants are seated in new processes, in turned order (default: 2; 1 on CUDA)",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="begin no case that would end after so long"
    )
    parser.add_argument(
        "--cases", type=_pattern, default="", metavar="REGEX", help="only cases such as chain-256/32"
    )
    parser.add_argument(
        "--contestants", type=_pattern, default="", metavar="REGEX",
        help="only contestants such as onnx-fused",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="two cases, two short rounds: to see that it works"
    )
    parser.add_argument("--large", action="store_true", help="on a CPU, the 1B-shaped decoder as well")
    parser.add_argument(
        "--chosen", action=argparse.BooleanOptionalAction, default=None,
        help="the form that fxfuse chooses by timing (default: on a CPU)",
    )  # fmt: skip
    parser.add_argument(
        "--autotune",
        type=_numbers,
        metavar="TOKENS",
        help="on CUDA, max-autotune at these tokens (default: 1, or none in a short run), or none",
    )
    parser.add_argument(
        "--check", action="store_true", help="only check answers against float64, and the norms' in 16 bits"
    )
    parser.add_argument("--verbose", action="store_true", help="show what the processes write to stderr")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the JSON file")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    on_cuda = options.device == "cuda"
    hurried = options.minutes is not None and options.minutes < HURRIED
    rounds, seconds = (2, 0.03) if options.quick else (3, 0.03) if on_cuda else (5, 0.12)
    return Settings(
        device=options.device,
        threads=options.threads or available_cores(),
        rounds=options.rounds or rounds,
        seatings=options.seatings or (1 if on_cuda or options.quick else 2),
        seconds=seconds,
        pause=0.005 if on_cuda else 0.05,
        autotuned=(() if hurried else (1,)) if options.autotune is None else options.autotune,
        patience=75.0 if on_cuda else 900.0,
        writing=100.0 if on_cuda else 1800.0,
        verbose=options.verbose,
        only=options.contestants,
        chosen=(not on_cuda and not options.quick) if options.chosen is None else options.chosen,
    )


def _cases(options: argparse.Namespace) -> Sequence[Case]:
    known = cases_on(options.device, large=options.large)
    if options.quick and not options.cases:
        return QUICK if options.device == "cpu" else known[:1]
    found = [case for case in known if re.search(options.cases, str(case))]
    if not found:
        raise FxfuseError(f"no case matches --cases; there are {', '.join(map(str, known))}.")
    return found


def _folder(options: argparse.Namespace) -> Path:
    """Only a full run replaces the figures that are kept."""
    partial = options.quick or options.cases or options.contestants
    return options.output or Path("out/benchmarks" if partial else "benchmarks")


def _check(device: str, cases: Sequence[Case]) -> None:
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise FxfuseError("there is no CUDA device that torch can use: choose --device cpu.")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _numbers(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(_positive(each) for each in text.split(","))


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None
    return text


if __name__ == "__main__":
    sys.exit(main())
