"""Measure what fusing costs on the trained models and what is won back; writes docs/quality.md.

    python -m tools.quality_table                       both models, about an hour on two cores
    python -m tools.quality_table --models demo --max-bytes 20480 --tokens 20480     a quick look
    python -m tools.quality_table --parts ranking       some parts again, into the figures kept
    python -m tools.quality_table --render              the page again, from the figures kept

The figures of each model go to benchmarks/quality-NAME.json as soon as they are complete.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fxfuse.frontends.torch_model import read_torch
from fxfuse.report_file import write_text
from models import load_demo
from tools.quality.judge import Judge, calibration
from tools.quality.study import Study
from tools.quality.text import render

ROOT = Path(__file__).resolve().parents[1]


PARTS: dict[str, Callable[[Study], Any]] = {
    "whole_run": Study.whole_run,
    "planned": lambda made: {str(depth): made.planned(depth) for depth in (2, 3)},
    "ranking": Study.ranking,
    "brute_force": Study.brute_force,
    "removing": Study.removing,
    "sweep": Study.sweep,
}


def study(name: str, max_bytes: int, tokens: int, parts: Sequence[str]) -> dict[str, Any]:
    """The figures of one model."""
    started = time.monotonic()

    def tell(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {name}: {text}", flush=True)

    model, data = load_demo(name), calibration(tokens)
    front = read_torch(model, data.fit[0])
    judge = Judge(front, max_bytes)
    tell("the sequential model on held-out bytes")
    made = Study(front, judge, data, tell)
    return {
        "bytes": judge.bytes,
        "tokens": data.tokens + data.held_out_tokens,
        "machine": (
            f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} CPU cores."
        ),
        **{part: PARTS[part](made) for part in parts},
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["demo", "demo-gelu"], metavar="NAME")
    parser.add_argument("--max-bytes", type=int, default=102_400, help="held-out bytes that judge")
    parser.add_argument("--tokens", type=int, default=81_920, help="training bytes to fit and choose on")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "quality.md")
    parser.add_argument("--figures", type=Path, default=ROOT / "benchmarks", help="folder of the figures")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="measure only these again")
    parser.add_argument("--render", action="store_true", help="only write the page, from the figures kept")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in options.models:
        path = options.figures / f"quality-{name}.json"
        if not options.render:
            known = json.loads(path.read_text(encoding="utf-8")) if options.parts else {}
            parts = options.parts or list(PARTS)
            figures = known | study(name, options.max_bytes, options.tokens, parts)
            write_text(path, json.dumps(figures, indent=1) + "\n")
        found[name] = json.loads(path.read_text(encoding="utf-8"))
    page = render(found)
    write_text(options.out, page)
    print(page)


if __name__ == "__main__":
    main()
