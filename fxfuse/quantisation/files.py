"""Quantise an ONNX file that was just fused, in its workspace, before anything is put in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fxfuse.budget import Budget
from fxfuse.errors import InputError
from fxfuse.frontends.onnx_file import FusedFile, OnnxFile
from fxfuse.onnxio import file_size
from fxfuse.passes.onnx.provenance import read_provenance
from fxfuse.quantisation.judging import QuantisedJudge, decline, kept_notes, over_budget, settle
from fxfuse.quantisation.onnx import Written, write_quantised
from fxfuse.quantisation.options import Quantise
from fxfuse.quantisation.records import GroupQuantisation, Quantisation
from fxfuse.report import Report

__all__ = ["quantise_fused"]


def quantise_fused(
    front: OnnxFile,
    fused: FusedFile,
    wish: Quantise,
    report: Report,
    budget: Budget,
    progress: Callable[[str], None],
) -> FusedFile | None:
    """Quantise what `fused` wrote, in its place; fills `report`. None where that is over the budget.

    A group that min_sqnr does not allow to lose so much keeps its float products; the rest is quantised.

    Raises:
        InputError: No product can be quantised.
        VerificationError: The quantised model gives NaN or infinity.
    """
    names = [group.blocks for group in report.groups[: len(fused.groups)]]
    hidden_size = report.chains[0].blocks[0].hidden_size
    judge = QuantisedJudge(front, fused, names, hidden_size, budget)
    folder = fused.path.parent / "quantised"
    folder.mkdir()
    written: Written | None = None

    def again(kept: Sequence[GroupQuantisation]) -> FusedFile:
        nonlocal written
        progress(f"quantising to {wish.kind}")
        leave = _weights_of(fused, kept)
        written = write_quantised(fused.model, fused.path.parent, folder / fused.path.name, wish, leave)
        progress("judging what was quantised")
        return replace(fused, model=written.model, path=written.path)

    try:
        groups = settle(judge, budget, again)
    except InputError:
        if written is None:
            raise
        decline(report, f"as {wish.kind} no group keeps the budget of {budget.min_sqnr:g} dB")
        return None
    assert written is not None
    quantised = replace(fused, model=written.model, path=written.path)
    found = report.quantisation = Quantisation(
        wish.kind, len(written.products), written.left, tuple(groups), **judge.totals(quantised),
        bytes_before=file_size(fused.model, fused.path, fused.path.parent),
        bytes_after=file_size(written.model, written.path, folder),
    )  # fmt: skip
    report.notes += kept_notes(found, budget)
    if (reason := over_budget(found, budget)) is not None:
        decline(report, reason)
        return None
    return replace(quantised, path=_move(written, fused.path))


def _weights_of(fused: FusedFile, kept: Sequence[GroupQuantisation]) -> set[str]:
    """The names of the wide weights of some groups."""
    blocks = {group.blocks for group in kept}
    recorded = read_provenance(fused.model)[0] if kept else []
    return {name for group in recorded if group.blocks in blocks for name in group.weights.values()}


def _move(written: Written, path: Path) -> Path:
    """Put the quantised files where the fused ones lie; the model last."""
    for name in (f"{path.name}.data", path.name):
        if (written.path.parent / name).exists():
            os.replace(written.path.parent / name, path.parent / name)
    written.path.parent.rmdir()
    return path
