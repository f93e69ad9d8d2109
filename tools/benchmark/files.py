"""What contestants read: a plain and a fused ONNX file of a model, and what its answers must be."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import fxfuse
from fxfuse.export import quiet_exporter
from tools.benchmark.cases import Settings, dtype_of
from tools.benchmark.subjects import build, draw_input, run_parallel

__all__ = ["Reference", "read_reference", "write_files"]


class Reference:
    """One case: its input, and its answers in float64, sequential and with every chain in parallel."""

    TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 5e-2}
    """Relative errors above these are mistakes: rounding through a dozen layers stays well below."""

    def __init__(self, path: Path, dtype: str) -> None:
        with np.load(path) as arrays:
            self.input = arrays["input"]
            self.answers = {form: arrays[f"{dtype}-{form}"] for form in ("sequential", "parallel")}
        self.tolerance = self.TOLERANCE[dtype]

    def check(self, answer: NDArray[np.float64], *, fused: bool) -> float:
        """The relative error of an answer.

        Raises:
            ValueError: It is too large, as it is for NaN and zeros.
        """
        expected = self.answers["parallel" if fused else "sequential"]
        error = float(np.linalg.norm(answer - expected) / np.linalg.norm(expected))
        if not error <= self.tolerance:
            raise ValueError(f"wrong answer: relative error {error:.1e} against float64")
        return error


def read_reference(folder: Path, tokens: int, dtype: str) -> Reference:
    """Read what `write_files` wrote for that many tokens."""
    return Reference(folder / f"{tokens}.npz", dtype)


def write_files(name: str, lengths: Sequence[int], folder: Path, settings: Settings) -> list[int]:
    """Write `onnx.onnx`, `onnx-fused.onnx` and a reference for each length; returns group sizes.

    Raises:
        FxfuseError: The file cannot be fused.
    """
    torch.set_num_threads(settings.threads)
    model = build(name)
    for tokens in lengths:
        _write_reference(folder / f"{tokens}.npz", model, tokens, settings.device)
    model = model.to(getattr(torch, dtype_of("onnx", settings.device)))
    plain = folder / "onnx.onnx"
    sample = _write_plain(model, plain)
    report = fxfuse.fuse_onnx(
        plain, folder / "onnx-fused.onnx", inputs=[sample], provider=settings.device, min_sqnr=None
    )
    if not report.groups:
        raise fxfuse.FxfuseError(report.summary())
    return [len(group.blocks) for group in report.groups]


def _write_reference(path: Path, model: nn.Module, tokens: int, device: str) -> None:
    """Weights are first rounded as each contestant has them: only its arithmetic is judged."""
    x = draw_input(model, tokens)
    arrays = {"input": x.numpy()}
    for dtype in {dtype_of(contestant, device) for contestant in ("eager", "onnx")}:
        exact = copy.deepcopy(model).to(getattr(torch, dtype)).double()
        wide = x.double() if x.is_floating_point() else x
        with torch.no_grad():
            arrays[f"{dtype}-sequential"] = exact(wide).numpy()
            arrays[f"{dtype}-parallel"] = run_parallel(exact, wide).numpy()
    np.savez(path, **arrays)


def _write_plain(model: nn.Module, path: Path) -> dict[str, NDArray[Any]]:
    """Export with the sequence length left open; returns an input that the file takes."""
    x = draw_input(model, 8)
    if x.is_floating_point():
        x = x.to(next(model.parameters()).dtype)
    shapes = ({1: torch.export.Dim("sequence")},)
    with quiet_exporter(), torch.no_grad():
        torch.onnx.export(
            model, (x,), path, dynamo=True, dynamic_shapes=shapes, external_data=True,
            input_names=["x"], output_names=["y"], verbose=False,
        )  # fmt: skip
    return {"x": x.numpy()}
