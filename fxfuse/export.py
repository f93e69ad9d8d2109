"""Export a module to ONNX, fused and verified, in one call."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fxfuse.budget import Budget
from fxfuse.errors import InputError
from fxfuse.external import data_files
from fxfuse.files import stage
from fxfuse.inputs import Sample
from fxfuse.onnx_api import fuse_onnx
from fxfuse.onnxio import load_model
from fxfuse.passes.onnx.view import to_numpy
from fxfuse.pipeline import Progress
from fxfuse.planning.files import AnyPlan
from fxfuse.planning.using import plan_for
from fxfuse.quantisation.options import Quantise
from fxfuse.recovery.using import recovery_for
from fxfuse.report import Report
from fxfuse.sessions import Provider
from fxfuse.timing.target import AnyTarget
from fxfuse.timing.using import target_on

__all__ = ["export_onnx", "export_program", "quiet_exporter"]

AnyPath = str | os.PathLike[str]


def export_onnx(
    model: torch.nn.Module,
    args: Sequence[Any],
    out_path: AnyPath,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    plan: AnyPlan | None = None,
    recover: Any = None,
    calibration: Any = None,
    quantize: str | None = None,
    quantize_exclude: str | None = None,
    target: AnyTarget = None,
    provider: Provider = "auto",
    force: bool = False,
    progress: Progress = lambda _: None,
    **budget: Any,
) -> Report:
    """Export a module to ONNX (torch.export, then torch.onnx), fuse it, verify it on `args` and write it.

    The file is written also where nothing could be fused: the report's `groups` tell.

    Args:
        model: The module, in eval mode.
        args: Example positional arguments; the loss is measured on them.
        out_path: The ONNX file to write.
        kwargs: Example keyword arguments.
        dynamic_shapes: As in `torch.export.export`.
        opset: ONNX opset version; the exporter's default when None.
        plan: A plan or its file; its groups are fused instead of those that the budget would choose.
        recover: "fit", "distill" or `RecoveryOptions`: correct the weights of the groups on `calibration`.
        calibration: What `Calibration.of` reads: a file of token ids, batches, a DataLoader, a `Calibration`.
        quantize: "int8" or "int4": store the weights of MatMul products so after fusing; see `fuse_onnx`. A
            model in which nothing was fused is written as it is.
        quantize_exclude: A regular expression for products and weights that stay float.
        target: Token counts, or a `Target`: what the result has to be fast on; see `fuse_onnx`.
        provider: "auto", "cuda" or "cpu".
        force: Overwrite `out_path`.
        progress: Called with a short text at every step.
        budget: The fields of `Budget`.

    Raises:
        InputError: An option, the plan, the model's mode or the output's place cannot be used.
        VerificationError: The rewritten model does not compute what it should; nothing was written.
    """
    plan_for(
        plan, Budget.of(budget, also=("plan", "recover", "calibration", "quantize"))
    )  # before what takes time
    recovery = recovery_for(recover, calibration)
    Quantise.of(quantize, quantize_exclude)
    wanted = target_on(target, provider)
    if model.training:
        raise InputError("The model is in training mode: call model.eval() before export_onnx.")
    out = Path(out_path)
    with stage(out, force=force) as staging, tempfile.TemporaryDirectory(dir=staging.folder) as folder:
        plain = Path(folder) / "model.onnx"
        progress("exporting")
        sample = _export(model, tuple(args), dict(kwargs or {}), dynamic_shapes, opset, plain)
        report = fuse_onnx(
            plain,
            staging.path(out.name),
            inputs=[sample],
            plan=plan,
            recover=recovery.options if recovery is not None else None,
            calibration=recovery.calibration if recovery is not None else None,
            quantize=quantize,
            quantize_exclude=quantize_exclude,
            target=wanted,
            provider=provider,
            progress=progress,
            **budget,
        )
        if report.output is None:
            _copy_model(plain, staging.folder, out.name)
    report.model, report.output = type(model).__name__, str(out)
    return report


def export_program(
    program: torch.export.ExportedProgram, out_path: AnyPath, *, opset: int | None = None, force: bool = False
) -> None:
    """Write a program of torch.export, fused or not, as ONNX; the file appears whole or not at all.

    Raises:
        InputError: The output's place cannot be used.
    """
    out = Path(out_path)
    with stage(out, force=force) as staging, quiet_exporter(), torch.no_grad():
        made = torch.onnx.export(program, (), opset_version=opset, dynamo=True, verbose=False)
        assert made is not None
        large = sum(tensor.nbytes for tensor in program.state_dict.values()) > 1 << 30
        made.save(str(staging.path(out.name)), external_data=large)


def _export(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    opset: int | None,
    path: Path,
) -> Sample:
    """Write the plain ONNX model; returns the example arguments as the model's inputs."""
    with quiet_exporter(), torch.no_grad():
        exported = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        program = torch.onnx.export(
            exported, args, kwargs=kwargs, opset_version=opset, dynamo=True, verbose=False
        )
    assert program is not None
    program.save(str(path), external_data=_is_large(model))
    names = [str(value.name) for value in program.model.graph.inputs]
    values = [
        each for each in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)
    ]
    if len(values) != len(names):
        raise InputError(
            f"The exported model takes {len(names)} inputs ({', '.join(names)}) for {len(values)} tensors."
        )
    return dict(zip(names, (to_numpy(value) for value in values), strict=True))


def _is_large(model: torch.nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) > 1 << 30


def _copy_model(source: Path, folder: Path, name: str) -> None:
    from fxfuse.onnxio import write_model

    model, data = load_model(source)
    external = data_files(model, data)
    write_model(model, data, folder / name, folder / f"{name}.data" if external else None)


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter warns of things that its users cannot act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
