"""What contestants read: ONNX files, plain, optimised by others, fused and quantised, and references.

All of it is written in a process of its own, which is gone before anything is timed.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import fxfuse
from fxfuse.export import quiet_exporter
from models.decoder import Decoder
from tools.benchmark.cases import Settings
from tools.benchmark.entries import chosen_file
from tools.benchmark.references import answers, layers_of, write_references
from tools.benchmark.subjects import Chain, Size, Wide, build, draw_input, size_of, without_ffns

__all__ = ["Writer", "Written", "open_writer"]

BY_HAND = 500_000_000
"""Weights of a chain above which, on CUDA, the fused file is written by hand: fusing takes minutes."""


@dataclass
class Written:
    """What was written of a model: its size, the fused groups by file, and why files are missing."""

    size: Size
    groups: dict[str, list[int]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def open_writer(model: str, dtype: str, folder: Path, settings: Settings) -> Writer:
    """The factory of the writing process."""
    return Writer(model, dtype, folder, settings)


class Writer:
    """Writes the files of one model into a folder."""

    def __init__(self, model: str, dtype: str, folder: Path, settings: Settings) -> None:
        torch.set_num_threads(
            max(1, settings.threads // 4) if settings.device == "cuda" else settings.threads
        )
        logging.disable(logging.WARNING)
        self._name, self._folder, self._settings = model, folder, settings
        self._dtype = getattr(torch, dtype)

    def start(self, lengths: Sequence[int]) -> Written:
        """Build the model, write its references; the files follow one by one."""
        device = self._settings.device
        model = build(self._name, device, self._dtype)
        self._written = Written(size_of(model))
        write_references(model, lengths, self._folder)
        self._model = model.cpu()
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        return self._written

    def add(self, name: str) -> Written:
        """Write one file, plain.onnx first; what cannot be written is told."""
        form, _, kind = name.removesuffix(".onnx").partition("-")
        try:
            if form in self._written.failures or "plain.onnx" in self._written.failures:
                raise fxfuse.FxfuseError("the file that it is made of could not be written.")
            with quiet_exporter():
                if kind:
                    quantise(self._folder, form, kind)
                else:
                    self._write_form(form)
        except Exception as error:  # another tool may fail in any way: the others go on
            lines = str(error).strip().splitlines()
            self._written.failures[name] = f"{type(error).__name__}: {lines[0] if lines else ''}"
        gc.collect()
        return self._written

    def choose(self, tokens: int, kind: str) -> Written:
        """Write the form that fxfuse finds fastest at that many tokens, with weights of a kind."""
        written = Written(Size(0, 0))
        name = chosen_file(tokens, kind)
        with np.load(self._folder / f"{tokens}.npz") as arrays:
            sample = {"x": arrays["input"]}
        target = {"tokens": (tokens,), "device": self._settings.device, "threads": self._settings.threads}
        report = fxfuse.fuse_onnx(
            self._folder / "plain.onnx", self._folder / name, inputs=[sample], min_sqnr=None,
            provider=self._settings.device, target=target, force=True,
            quantize=None if kind == "float" else kind,
        )  # fmt: skip
        if not report.groups:
            written.failures[name] = f"declined: {report.summary()}"
        else:
            (found,) = answers(
                build(self._name, "cpu", self._dtype),
                [torch.from_numpy(sample["x"])],
                layers_of(report.groups),
            )
            np.savez(self._folder / name, expected=found["parallel"].numpy())  # NAME.onnx.npz
            written.groups[name] = [len(group.blocks) for group in report.groups]
            written.notes += [str(form) for group in report.groups if (form := getattr(group, "form", None))]
        return written

    def _write_form(self, form: str) -> None:
        plain, out, model = self._folder / "plain.onnx", self._folder / f"{form}.onnx", self._model
        if form == "plain":
            self._sample = write_plain(model, out)
        elif form == "fused":
            self._written.groups["fused.onnx"] = self._fuse(plain, out)
        elif form == "optimizer":
            optimise(plain, out, on_gpu=self._settings.device == "cuda")
        elif form == "onnxscript":
            counts = optimise_with_onnxscript(plain, out)
            self._written.notes.append(f"onnxscript's fusions: {counts or 'none'}")
        elif form == "bound" and isinstance(model, Decoder):
            layers = model.layers
            write_plain(without_ffns(model), out)
            model.layers = layers
        else:
            raise ValueError(f"there is no form {form}")

    def _fuse(self, plain: Path, out: Path) -> list[int]:
        provider, given = self._settings.device, {"inputs": [self._sample], "min_sqnr": None}
        if provider == "cuda" and isinstance(self._model, Chain) and self._written.size.weights > BY_HAND:
            self._written.notes.append("fused.onnx is written by hand, as fxfuse writes it")
            write_plain(Wide(self._model), out)
            return [len(self._model.layers)]
        try:
            report = fxfuse.fuse_onnx(plain, out, provider=provider, **given)
        except fxfuse.FxfuseError as error:
            if provider == "cpu":
                raise
            self._written.notes.append(f"verified on the CPU, since on CUDA: {error}")
            report = fxfuse.fuse_onnx(plain, out, provider="cpu", force=True, **given)
        if not report.groups:
            raise fxfuse.FxfuseError(report.summary())
        return [len(group.blocks) for group in report.groups]


def write_plain(model: nn.Module, path: Path) -> dict[str, NDArray[Any]]:
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
    return {"x": _numpy(x)}


def _numpy(x: torch.Tensor) -> NDArray[Any]:
    if x.dtype != torch.bfloat16:
        return x.numpy()
    import ml_dtypes

    return x.float().numpy().astype(ml_dtypes.bfloat16)


def optimise(plain: Path, out: Path, *, on_gpu: bool) -> None:
    """onnxruntime.transformers.optimizer with its generic fusions (SkipLayerNormalization and the like)."""
    from onnxruntime.transformers import optimizer

    with contextlib.redirect_stdout(None):
        made = optimizer.optimize_model(
            str(plain), model_type="bert", num_heads=0, hidden_size=0, opt_level=0, use_gpu=on_gpu
        )
        made.save_model_to_file(str(out), use_external_data_format=True)


def optimise_with_onnxscript(plain: Path, out: Path) -> dict[str, int]:
    """The fusions of onnxscript for ONNX Runtime; returns how often each was made."""
    import onnx_ir
    from onnxscript.rewriter import ort_fusions

    model, counts = ort_fusions.optimize_for_ort(onnx_ir.load(plain))
    onnx_ir.save(model, out, external_data=f"{out.name}.data")
    return {name: count for name, count in counts.items() if count}


def quantise(folder: Path, form: str, kind: str) -> None:
    """Weights in int4 (MatMulNBits in blocks of 32) or int8 (dynamic), by onnxruntime.quantization."""
    source, out = folder / f"{form}.onnx", folder / f"{form}-{kind}.onnx"
    if kind == "int4":
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        made = MatMulNBitsQuantizer(str(source), bits=4, block_size=32, is_symmetric=True, accuracy_level=4)
        made.process()
        made.model.save_model_to_file(str(out), use_external_data_format=True)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(source), str(out), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"], per_channel=True,
        use_external_data_format=True, extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip
