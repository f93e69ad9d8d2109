"""The four corners as JSON and as a table.

    {"kind": "corners", "format": 1, "machine": {...}, "versions": {...}, "settings": {...},
     "forms": [FORM, ...],
     "models": [{"model": "chain-256", "groups": [8], "loss_on": "64 random tokens, random weights",
                 "forms": {FORM: {"file_bytes": 1, "read_bytes": 1, "loss": {...}}},
                 "points": [{"tokens": 1, "timings": {FORM: TIMING}, "ratios": {FORM: RATIO},
                             "fusing": {KIND: RATIO}, "gb_per_s": {FORM: 1.0}}]}]}

FORM is "unfused-float" and so on; TIMING and RATIO are the fields of `fxfuse.timing.rounds`. "ratios" are the
time of "unfused-float" over that of the form, "fusing" those of unfused over fused at one kind of weights.
A loss is {"relative_error", "relative_error_to_float"} of a chain's output, or {"kl", "kl_standard_error",
"top1_agreement", "kl_to_float", "top1_agreement_to_float"} of logits: against unfused-float, and against the
float file of the same form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from fxfuse.timing.rounds import Ratio
from fxfuse.versions import versions
from tools.benchmark.corners import FORMS, KINDS, Corners, Pace, named
from tools.benchmark.machine import Machine

__all__ = ["LEGEND", "draw", "to_dict", "write"]

LEGEND = (
    "loss: relative error of a chain's output, KL of logits in nats, against fp32 unfused; step: the same "
    "against fp32 of the same form; times of a call in ms, and how many times faster than fp32 unfused"
)


def to_dict(found: Sequence[Corners], pace: Pace, machine: Machine) -> dict[str, Any]:
    """All figures, ready for JSON."""
    return {
        "kind": "corners",
        "format": 1,
        "machine": machine.to_dict(),
        "versions": versions(),
        "settings": asdict(pace),
        "forms": list(FORMS),
        "models": [_model(corners) for corners in found],
    }


def write(figures: Mapping[str, Any], path: Path) -> None:
    """Write the JSON file, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def draw(found: Sequence[Corners]) -> Table:
    """One row a form and model: its loss, its size, and its time and ratio at every number of tokens."""
    lengths = sorted({tokens for corners in found for tokens in corners.timings})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("model", "form"):
        table.add_column(name)
    for name in ("loss", "step", "MB", *(f"{tokens} tokens" for tokens in lengths)):
        table.add_column(name, justify="right")
    for corners in found:
        for place, form in enumerate(FORMS):
            facts = corners.forms[form]
            times = [_cell(corners, tokens, form) if tokens in corners.timings else "" for tokens in lengths]
            table.add_row(
                corners.model if place == 0 else "", named(form), *_losses(facts["loss"]),
                f"{facts['file_bytes'] / 1e6:,.1f}", *times, end_section=place == len(FORMS) - 1,
            )  # fmt: skip
    return table


def _cell(corners: Corners, tokens: int, form: str) -> str:
    time = corners.timings[tokens][form].p50_us / 1e3
    return f"{time:.3g} ({corners.ratio(tokens, form).median:.2f}x)"


def _losses(loss: Mapping[str, float]) -> tuple[str, str]:
    names = ("kl", "kl_to_float") if "kl" in loss else ("relative_error", "relative_error_to_float")
    whole, step = (f"{loss[name]:.2e}" if loss[name] else "0" for name in names)
    return whole, step


def _model(corners: Corners) -> dict[str, Any]:
    return {
        "model": corners.model,
        "groups": corners.groups,
        "loss_on": corners.loss_on,
        "forms": {form: _without_nan(facts) for form, facts in corners.forms.items()},
        "points": [_point(corners, tokens) for tokens in corners.timings],
    }


def _point(corners: Corners, tokens: int) -> dict[str, Any]:
    timings = corners.timings[tokens]
    return {
        "tokens": tokens,
        "timings": {form: _rounded(asdict(timing)) for form, timing in timings.items()},
        "ratios": {form: _ratio(corners.ratio(tokens, form)) for form in timings},
        "fusing": {kind: _ratio(corners.fusing(tokens, kind)) for kind in KINDS},
        "gb_per_s": {
            form: round(corners.forms[form]["read_bytes"] / 1e3 / timing.p50_us, 3)
            for form, timing in timings.items()
        },
    }


def _ratio(ratio: Ratio) -> dict[str, Any]:
    return _rounded(asdict(ratio))


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: [round(each, 4) for each in value] if isinstance(value, (tuple, list)) else round(value, 4)
        for name, value in figures.items()
    }


def _without_nan(facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN, which is the error of a mean of one window."""
    loss = {name: None if value != value else value for name, value in facts["loss"].items()}
    return {**facts, "loss": loss}
