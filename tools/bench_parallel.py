"""Decode steps under tensor parallel, fused and not: python tools/bench_parallel.py [--quick] (see --help).

Every crew of ranks is started anew for each contestant, in turn; on a CPU each rank computes with one thread.
A full run goes to benchmarks/parallel-DEVICE.json, a quick one to out/benchmarks/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # for `tools` and `models`, here and in the processes that are started

from rich.console import Console  # noqa: E402

from fxfuse.timing.workers import Failure  # noqa: E402
from fxfuse.versions import versions  # noqa: E402
from tools.benchmark.machine import Machine, slug  # noqa: E402
from tools.benchmark.parallel_page import parallel_page  # noqa: E402
from tools.benchmark.parallel_steps import SHAPES, latencies, steps  # noqa: E402
from tools.benchmark.ranks import on_ranks  # noqa: E402

FORMS = ("eager", "compiled")
SIZES = [1 << power for power in range(10, 23, 2)]  # bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 0, or 2 where something failed."""
    options = _parser().parse_args(arguments)
    machine = Machine.here(options.device)
    try:
        with Console(stderr=True).status("starting") as status:
            found = measure(options, status.update)
    except Failure as failure:
        print(f"bench_parallel: {failure}", file=sys.stderr)
        return 2
    folder = options.output or ROOT / ("out/benchmarks" if options.quick else "benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"parallel-{slug(machine.device_name)}.json"
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    head = {"kind": "parallel", "date": date, "machine": machine.to_dict(), "versions": versions()}
    path.write_text(json.dumps({**head, **found}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(parallel_page(found)))
    print(f"Written to {path}")
    return 0


def measure(options: argparse.Namespace, told: Callable[[str], None]) -> dict[str, Any]:
    """All-reduces by size, then every model on every number of ranks, fused and not in turn."""
    rounds, seconds = (1, 0.2) if options.quick else (options.rounds, 2.0)
    reduced = {}
    for ranks in options.ranks:
        if ranks > 1:
            told(f"all-reduces, {ranks} ranks")
            job = (SIZES, seconds / 4, options.device)
            tries = [on_ranks(ranks, options.device, latencies, *job) for _ in range(rounds)]
            reduced[ranks] = {size: statistics.median(each[size] for each in tries) for size in SIZES}
    models = []
    for name, compiled, ranks in itertools.product(options.models, options.forms, options.ranks):
        found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for turn in range(rounds):
            for fused in (False, True) if turn % 2 == 0 else (True, False):
                told(f"hidden {name}, {FORMS[compiled]}, {ranks} ranks, round {turn + 1} of {rounds}")
                job = (SHAPES[name], fused, bool(compiled), seconds, options.device, options.dtype)
                found[fused].append(on_ranks(ranks, options.device, steps, *job))
        models.append({"form": FORMS[compiled], **_model(name, ranks, found, options.dtype)})
    return {"dtype": options.dtype, "rounds": rounds, "all_reduce_us": reduced, "models": models}


def _model(name: str, ranks: int, found: dict[bool, list[dict[str, Any]]], dtype: str) -> dict[str, Any]:
    shape = SHAPES[name]
    ratios = [one["whole"] / other["whole"] for one, other in zip(found[False], found[True], strict=True)]
    about = {"hidden": shape.hidden, "width": shape.width, "layers": shape.layers, "removed": shape.removed}
    sides = {
        side: {key: statistics.median(each[key] for each in found[fused]) for key in ("whole", "bare")}
        for side, fused in (("sequential", False), ("fused", True))
    }
    moved = {"weights": found[False][0]["weights"], "message": shape.hidden * _bytes(dtype)}
    return {**about, "ranks": ranks, **moved, **sides, "ratio": statistics.median(ratios), "ratios": ratios}


def _bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time decode steps under tensor parallel, fused and not.")
    parser.add_argument("--quick", action="store_true", help="one short round, nothing committed")
    parser.add_argument("--rounds", type=int, default=3, help="crews of each contestant (default: 3)")
    parser.add_argument("--ranks", type=_numbers, default=[1, 2, 4], metavar="N,N", help="default: 1,2,4")
    parser.add_argument("--models", type=_names, default=["256", "1024"], metavar="H,H",
                        help=f"hidden sizes, of {', '.join(SHAPES)} (default: 256,1024)")  # fmt: skip
    parser.add_argument("--forms", type=_forms, default=[0, 1], metavar="F,F", help=f"of {', '.join(FORMS)}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the JSON file")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def _forms(text: str) -> list[int]:
    if unknown := [each for each in text.split(",") if each not in FORMS]:
        raise argparse.ArgumentTypeError(f"no form {unknown[0]}: give some of {', '.join(FORMS)}")
    return [FORMS.index(each) for each in text.split(",")]


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [each for each in names if each not in SHAPES]:
        raise argparse.ArgumentTypeError(f"no model {unknown[0]}: give some of {', '.join(SHAPES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
