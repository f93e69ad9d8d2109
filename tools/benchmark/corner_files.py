"""The six files of a model, and what each loses; all of it in a process that is gone before timing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import fxfuse
from fxfuse.divergence import DivergenceMeter
from fxfuse.export import quiet_exporter
from fxfuse.external import size
from fxfuse.quantisation.onnx import quantize_file
from models.corpus import held_out
from models.run_demo import CONTEXT, export, save_sample
from tools.benchmark.corners import FORMS, KINDS, Pace, draw
from tools.benchmark.subjects import build

__all__ = ["CornerFiles", "open_writer"]

_TOKENS = 64
"""Tokens of random streams on which a chain's loss is told."""


def open_writer(model: str, folder: Path, pace: Pace) -> CornerFiles:
    """The factory of the writing process."""
    return CornerFiles(model, folder, pace)


class CornerFiles:
    """Writes and judges the files of one model."""

    def __init__(self, model: str, folder: Path, pace: Pace) -> None:
        torch.set_num_threads(pace.threads)
        logging.disable(logging.WARNING)
        self._model, self._folder, self._pace = model, folder, pace

    def write(self) -> tuple[list[int], str, dict[str, dict[str, Any]]]:
        """The lengths of the fused groups, what losses are told on, and the facts of each form.

        A chain becomes one wide FFN, whatever that loses on random weights; the demo model is fused within
        the default budget, on training text.
        """
        plain, fused = self._path("unfused-float"), self._path("fused-float")
        if self._model == "demo":
            export(plain)
            save_sample(self._folder / "sample.npz")
            report = fxfuse.fuse_onnx(plain, fused, inputs=[self._folder / "sample.npz"], provider="cpu")
        else:
            self._export_chain(plain)
            given = [draw(self._model, _TOKENS)]
            report = fxfuse.fuse_onnx(plain, fused, inputs=given, provider="cpu", min_sqnr=None)
        if not report.groups:
            raise fxfuse.FxfuseError(report.summary())
        for form in ("unfused", "fused"):
            for kind in KINDS[1:]:
                quantize_file(self._path(f"{form}-float"), self._path(f"{form}-{kind}"), kind)
        losses = self._demo_losses() if self._model == "demo" else self._chain_losses()
        facts = {form: {**self._sizes(form), "loss": losses[form]} for form in FORMS}
        return [len(group.blocks) for group in report.groups], self._loss_on, facts

    def _path(self, form: str) -> Path:
        return self._folder / f"{form}.onnx"

    def _export_chain(self, path: Path) -> None:
        model = build(self._model)
        x = torch.from_numpy(draw(self._model, 8)["x"])
        with quiet_exporter(), torch.no_grad():
            torch.onnx.export(
                model, (x,), path, dynamo=True, dynamic_shapes=({1: torch.export.Dim("tokens")},),
                external_data=True, input_names=["x"], output_names=["y"], verbose=False,
            )  # fmt: skip

    def _sizes(self, form: str) -> dict[str, int]:
        """Bytes of the file with its data, and of what a call reads: of an embedding next to nothing."""
        model = onnx.load(self._path(form), load_external_data=False)
        looked_up = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
        read = sum(size(each) for each in model.graph.initializer if each.name not in looked_up)
        files = self._folder.glob(f"{form}.onnx*")
        return {"file_bytes": sum(each.stat().st_size for each in files), "read_bytes": read}

    @property
    def _loss_on(self) -> str:
        if self._model == "demo":
            return f"{len(self._windows()) * CONTEXT:,} held-out bytes"
        return f"{_TOKENS} random tokens, random weights"

    def _run(self, form: str, feed: dict[str, Any]) -> np.ndarray[Any, Any]:
        session = fxfuse.session(self._path(form), "cpu", threads=self._pace.threads)
        found: np.ndarray[Any, Any] = session.run(None, feed)[0]
        return found

    def _chain_losses(self) -> dict[str, dict[str, float]]:
        """Relative errors of the stream that the chain leaves."""
        feed = draw(self._model, _TOKENS)
        outputs = {form: self._run(form, feed).astype(np.float64) for form in FORMS}
        return {
            form: {
                "relative_error": _error(outputs[form], outputs["unfused-float"]),
                "relative_error_to_float": _error(outputs[form], outputs[f"{form.partition('-')[0]}-float"]),
            }
            for form in FORMS
        }

    def _windows(self) -> np.ndarray[Any, Any]:
        text = held_out(self._pace.held_out)
        return text[: len(text) // CONTEXT * CONTEXT].astype(np.int64).reshape(-1, CONTEXT)

    def _demo_losses(self) -> dict[str, dict[str, float]]:
        """KL of the logits and agreement on the likeliest byte, on text that decided nothing."""
        sessions = {
            form: fxfuse.session(self._path(form), "cpu", threads=self._pace.threads) for form in FORMS
        }
        meters = {(form, to): DivergenceMeter() for form in FORMS for to in ("unfused", "own")}
        for window in np.array_split(self._windows(), max(1, len(self._windows()) // 8)):
            logits = {
                form: torch.from_numpy(session.run(None, {"input_ids": window})[0])
                for form, session in sessions.items()
            }
            for (form, to), meter in meters.items():
                other = "unfused-float" if to == "unfused" else f"{form.partition('-')[0]}-float"
                meter.add(logits[other], logits[form])
        found = {key: meter.result() for key, meter in meters.items()}
        return {
            form: {
                "kl": found[form, "unfused"].kl,
                "kl_standard_error": found[form, "unfused"].standard_error,
                "top1_agreement": found[form, "unfused"].top1_agreement,
                "kl_to_float": found[form, "own"].kl,
                "top1_agreement_to_float": found[form, "own"].top1_agreement,
            }
            for form in FORMS
        }


def _error(value: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))
