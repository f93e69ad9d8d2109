"""From the demo model before its attention was removed to a fused ONNX file; writes docs/whole-way.md.

    python -m tools.whole_way                     from demo-dense and demo-gelu-dense: about an hour
    python -m tools.whole_way --models demo       from one of them

`fxfuse.compress` does the work; here every stage is judged once more on held-out bytes that took part in
nothing, and timed in ONNX Runtime, each file in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fxfuse.calibration import Calibration
from fxfuse.compression.judging import StageJudge
from fxfuse.compression.run import compress
from fxfuse.distillation.memory import keep_freed_memory
from fxfuse.export import export_program
from fxfuse.frontends.opening import open_model
from fxfuse.frontends.programs import load_program
from fxfuse.naming import span, spans
from fxfuse.page.api import write_page
from fxfuse.page.records import Stage
from fxfuse.report_file import write_text
from models import load_demo
from models.corpus import held_out, training
from tools.quality.judge import CONTEXT, windows
from tools.quality.latency import Latency, time_files

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = (1, 32, 256)


def go(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one model the whole way and judge its stages."""
    begun = time.monotonic()
    data = Calibration.of(windows(training(), options.windows), held_out=0.02, batch_size=8)
    found = compress(
        load_demo(f"{name}-dense"),
        data,
        folder,
        max_kl_attention=options.remove_kl,
        heal_steps=options.heal_steps,
        max_kl=options.max_kl,
        recover="distill",
        polish_steps=options.polish_steps,
        measure_tokens=49_152,
        distilling={"optimizer": "muon"},
        resume=options.resume,
        progress=lambda text: print(f"[{time.monotonic() - begun:5.0f} s] {name}: {text}", flush=True),
    )
    stages = judged(found.stages, data, options.max_bytes)
    latencies = timed(stages, folder)
    rows = [
        {**asdict(stage), "latency": {str(n): asdict(latencies[n][place]) for n in LENGTHS}}
        for place, stage in enumerate(stages)
    ]
    shown = [replace(s, latency_ms=latencies[1][place].median_ms) for place, s in enumerate(stages)]
    write_page(
        folder / "report.html",
        analysis=folder / "analysis.json",
        plan=folder / "plan.json",
        report=folder / "report.json",
        stages=shown,
        title=f"{name}: from a stock model to a fused one",
        command=f"python -m tools.whole_way --models {name}",
    )
    return {
        "bytes": options.max_bytes,
        "options": {k: getattr(options, k) for k in ("remove_kl", "heal_steps", "max_kl", "polish_steps")},
        "removed": [name for kind, name in _updates(stages[0]) if (kind, name) not in _updates(stages[1])],
        "groups": [list(group.blocks) for group in found.plan.groups] if found.plan else [],
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "notes": found.notes,
        "stages": rows,
    }


def judged(stages: Sequence[Stage], data: Calibration, max_bytes: int) -> list[Stage]:
    """The same stages, with figures on held-out bytes."""
    ids = held_out(max_bytes).astype(np.int64)
    rows = torch.from_numpy(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    batches = [{"input_ids": part} for part in rows.split(16)]
    found = []
    with open_model(str(stages[0].file), data) as stock, StageJudge(stock, batches, 2 << 30) as judge:
        for stage in stages:
            with open_model(str(stage.file), data) as front:
                result = judge.judge(front)
            kl = result.divergence
            found.append(
                replace(
                    stage,
                    loss=result.loss,
                    loss_error=result.loss_error,
                    kl=kl.kl,
                    kl_error=kl.standard_error,
                )
            )
    return found


def timed(stages: Sequence[Stage], folder: Path) -> dict[int, list[Latency]]:
    """Every stage as ONNX, timed side by side at several numbers of tokens."""
    paths = []
    for stage in stages:
        path = Path(str(stage.file))
        if path.suffix == ".pt2":
            path = path.with_suffix(".onnx")
            export_program(load_program(str(stage.file)), path, force=True)
        paths.append(path)
    return {n: time_files(paths, np.zeros((1, n), dtype=np.int64) + 101) for n in LENGTHS}


def _updates(stage: Stage) -> list[tuple[str, str]]:
    from fxfuse.passes.attention import stream_updates
    from fxfuse.removal.graphs import front_of

    return [(each.kind, each.name) for each in stream_updates(front_of(load_program(str(stage.file))).view)]


def page(found: dict[str, dict[str, Any]]) -> str:
    """docs/whole-way.md."""
    lines = [
        "# From a stock model to a fused one",
        "",
        "Printed by `python -m tools.whole_way`. Each model starts with attention in all of its 12 layers;",
        "one call of `fxfuse.compress` (the command `fxfuse compress`) leaves out attentions under a KL",
        "budget, heals by distillation from the stock model, plans, fuses, recovers and exports. nats/byte",
        "and KL (to the stock model, in nats per byte) are of held-out bytes that took part in nothing, ±",
        "standard errors over windows of 256 bytes. Depth: updates of the residual stream in a row. Latency:",
        "ONNX Runtime on one CPU thread, milliseconds of one call on 1, 32 and 256 tokens, each file in a",
        "process of its own, in turn; the ratio is to the stock model.",
    ]
    for name, figures in found.items():
        settings = figures["options"]
        groups = "; ".join(map(span, figures["groups"])) or "none"
        lines += [
            "",
            f"## {name}-dense",
            "",
            f"Attention may cost {settings['remove_kl']:g} nats before healing: "
            f"{spans(figures['removed'])} went. {settings['heal_steps']} steps of healing. Fusing may "
            f"cost {settings['max_kl']:g} nats: groups {groups}. {figures['minutes']:.0f} minutes in all; "
            f"{figures['bytes']:,} held-out bytes.",
            "",
            "| stage | nats/byte | KL to the stock model | depth | 1 token | 32 tokens | 256 tokens |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [_row(stage) for stage in figures["stages"]]
        lines += ["", *(f"- {note}" for note in figures["notes"])]
    return "\n".join(lines) + "\n"


def _row(stage: dict[str, Any]) -> str:
    times = [
        f"{found['median_ms']:.2f} ms ({found['ratio']:.2f}x)"
        for found in (stage["latency"][str(n)] for n in LENGTHS)
    ]
    return (
        f"| {stage['name']} | {stage['loss']:.4f} ± {stage['loss_error']:.4f} | "
        f"{stage['kl']:.4f} ± {stage['kl_error']:.4f} | {stage['depth']} | {' | '.join(times)} |"
    )


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["demo", "demo-gelu"], metavar="NAME")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "whole-way")
    parser.add_argument("--remove-kl", type=float, default=0.8)
    parser.add_argument("--heal-steps", type=int, default=800)
    parser.add_argument("--max-kl", type=float, default=0.02)
    parser.add_argument("--polish-steps", type=int, default=150)
    parser.add_argument("--windows", type=int, default=7168, help="windows of training text")
    parser.add_argument("--max-bytes", type=int, default=102_400, help="held-out bytes that judge")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "whole-way.md")
    parser.add_argument("--figures", type=Path, default=ROOT / "benchmarks")
    options = parser.parse_args()
    keep_freed_memory()
    found = {}
    for name in options.models:
        options.folder.mkdir(parents=True, exist_ok=True)
        found[name] = go(name, options.folder / name, options)
        write_text(options.figures / f"whole-way-{name}.json", json.dumps(found[name], indent=1) + "\n")
    text = page(found)
    write_text(options.out, text)
    print(text)


if __name__ == "__main__":
    main()
