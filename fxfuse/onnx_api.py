"""Fuse an ONNX file and write the result beside it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx_graphsurgeon.logger import G_LOGGER

from fxfuse.budget import Budget
from fxfuse.calibration.complete import complete
from fxfuse.clock import Clock
from fxfuse.errors import InputError
from fxfuse.external import data_files
from fxfuse.files import default_output, stage
from fxfuse.frontends.onnx_file import OnnxFile, depth, vocab_size
from fxfuse.inputs import Sample, check_sample, draw_inputs, load_inputs, specs_of
from fxfuse.inside import Inside, fuse_inside
from fxfuse.onnxio import count_parameters, file_size, load_model
from fxfuse.passes.onnx.bodies import bodies_of
from fxfuse.passes.onnx.view import to_numpy
from fxfuse.pipeline import Progress
from fxfuse.pipeline import fuse as run_pipeline
from fxfuse.planning.files import AnyPlan
from fxfuse.planning.using import plan_for
from fxfuse.quantisation.files import quantise_fused
from fxfuse.quantisation.options import Quantise
from fxfuse.recovery.using import Recovery, recovery_for
from fxfuse.report import Report, Size
from fxfuse.sessions import Provider
from fxfuse.timing.target import AnyTarget, Target
from fxfuse.timing.using import onnx_timing, target_on

__all__ = ["fuse_onnx"]

AnyPath = str | os.PathLike[str]
_BATCHES = 4
"""Held-out batches that are measured on, where calibration data are all that there is."""


def fuse_onnx(
    model_path: AnyPath,
    out_path: AnyPath | None = None,
    *,
    inputs: Sequence[AnyPath] | Sequence[Mapping[str, np.ndarray[Any, Any]]] | None = None,
    plan: AnyPlan | None = None,
    recover: Any = None,
    calibration: Any = None,
    quantize: str | None = None,
    quantize_exclude: str | None = None,
    target: AnyTarget = None,
    provider: Provider = "auto",
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda _: None,
    report: Report | None = None,
    **budget: Any,
) -> Report:
    """Fuse the FFN chains of an ONNX file and write the result, verified in ONNX Runtime.

    Args:
        model_path: The model; external data are read from beside it.
        out_path: Where to write; MODEL.fused.onnx beside the model by default.
        inputs: Samples to measure on, as .npz files or as dicts of arrays; by default held-out
            batches of `calibration`, or drawn from `seed`.
        plan: A plan or its file; its groups are fused instead of those that the budget would choose, and the
            bodies of If, Loop and Scan nodes are left as they are.
        recover: "fit", "distill" or `RecoveryOptions`: correct the weights of the groups on `calibration`.
        calibration: What `Calibration.of` reads: a file of token ids, batches, a DataLoader, a `Calibration`.
        quantize: "int8" or "int4": store the weights of MatMul products so after fusing. The budget then
            holds for what is written: a group that falls under min_sqnr keeps its products float, and
            nothing is written where max_kl is exceeded.
        quantize_exclude: A regular expression, searched for in the layer paths and names of products and
            weights; what matches stays float.
        target: What the result has to be fast on: token counts such as 1 or (1, 8, 32), or a `Target` with
            device and threads. Groups are then timed there in every form, those that do not pay stay
            sequential, and a result that is slower than the model at one of the counts is not written.
        provider: "auto", "cuda" or "cpu".
        force: Overwrite the output, or the input.
        dry_run: Do everything but put the output in its place.
        progress: Called with a short text at every step.
        report: Filled instead of a new one, so that it can be read after an error.
        budget: The fields of `Budget`: min_sqnr, max_kl, max_group, include, exclude, seed.

    Returns:
        The report; its `output` is None where nothing was fused. A dry run names what it would have written.

    Raises:
        InputError: The model, the inputs, the plan, an option or the output's place cannot be used.
        VerificationError: The rewritten model does not compute what it should; nothing was written.
    """
    report = Report(model="") if report is None else report
    report.model = os.fspath(model_path)
    started, clock = time.perf_counter(), Clock(report.phases, progress)
    try:
        wish = Quantise.of(quantize, quantize_exclude)
        wanted = target_on(target, provider)
        with G_LOGGER.suppress(G_LOGGER.ERROR):  # it prints, to stdout
            return _fuse_onnx(
                Path(model_path), out_path, inputs, plan, (recover, calibration), wish, wanted, provider,
                force, dry_run, clock, report, budget,
            )  # fmt: skip
    except BaseException as error:
        report.error = report.error or str(error) or type(error).__name__
        report.output, report.after, report.groups, report.end_to_end = None, None, [], {}
        report.quantisation, report.latency = None, []
        raise
    finally:
        clock.stop()
        report.seconds = round(time.perf_counter() - started, 3)


def _fuse_onnx(
    path: Path,
    out_path: AnyPath | None,
    inputs: Sequence[Any] | None,
    plan: AnyPlan | None,
    wish: tuple[Any, Any],
    quantise: Quantise | None,
    target: Target | None,
    provider: Provider,
    force: bool,
    dry_run: bool,
    progress: Progress,
    report: Report,
    budget: Mapping[str, Any],
) -> Report:
    bounds = Budget.of(budget, also=("plan", "recover", "calibration", "quantize", "target"))
    planned = plan_for(plan, bounds)
    recovery = recovery_for(*wish, path)
    out = Path(out_path) if out_path is not None else default_output(path)
    progress("reading the model")
    model, folder = load_model(path)
    recovery = recovery.checked(vocab_size(model)) if recovery is not None else None
    samples = _samples(model, inputs, bounds.seed, report, recovery)
    sources = [path, *data_files(model, folder)]
    timing = onnx_timing(
        target, model, path, sum(each.stat().st_size for each in sources), seed=bounds.seed,
        vocab_size=vocab_size(model), quantize=quantise.kind if quantise is not None else None,
        progress=progress,
    )  # fmt: skip
    with _workspace(out, sources, force, dry_run) as workspace, timing as timed:
        own = workspace / "bodies" / out.name
        if planned is None:
            inside = fuse_inside(model, folder, samples, own, provider, bounds, progress)
        else:
            inside = Inside(model, folder)
            report.notes += _bodies_left(model)
        front = OnnxFile(
            inside.model, inside.folder, samples, workspace, out.name, provider, reference=inside.reference
        )
        report.notes += front.notes
        fused = run_pipeline(
            front, bounds, report, progress, planned, recovery=recovery,
            timing=timed.pipeline if timed is not None else None,
        )  # fmt: skip
        inside.tell(report)
        if timed is not None and any(own.groups for own in inside.reports.values()):
            report.notes.append("groups in bodies of If, Loop and Scan were fused without being timed")
        if recovery is not None and any(own.groups for own in inside.reports.values()):
            report.notes.append(
                "recovery leaves the groups in bodies of If, Loop and Scan as they were fused"
            )
        report.before = _size(model, path, folder, report.ffn_blocks)
        if fused is None and inside.path is None:
            raise _Nothing
        fused = fused or inside.take(workspace)
        report.after = _size(fused.model, fused.path, workspace, report.ffn_blocks_left)
        if quantise is not None:
            free = planned is not None or recovery is not None  # which min_sqnr does not judge either
            held = replace(bounds, min_sqnr=None) if free else bounds
            quantised = quantise_fused(front, fused, quantise, report, held, progress)
            if quantised is None:
                raise _Nothing
            size = _size(quantised.model, quantised.path, workspace, report.ffn_blocks_left)
            report.after = replace(size, parameters=report.after.parameters)
            fused = quantised
        if timed is not None:
            timed.finish(fused, report)
        report.output = str(out)
        progress("putting the output in its place")
    return report


class _Nothing(Exception):
    """Leaves the workspace without putting anything in place."""


@contextlib.contextmanager
def _workspace(out: Path, sources: Sequence[Path], force: bool, dry_run: bool) -> Iterator[Path]:
    """Where the output grows: beside its place, or in a temporary folder for a dry run."""
    try:
        if dry_run:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)
        else:
            needed = sum(each.stat().st_size for each in sources)
            with stage(out, inputs=sources, force=force, needed=needed) as staging:
                if len(sources) > 1:
                    staging.path(f"{out.name}.data")  # refused now rather than after the work
                yield staging.folder
    except _Nothing:
        return


def _bodies_left(model: onnx.ModelProto) -> list[str]:
    if not any(bodies_of(model.graph)):
        return []
    return [
        "what is inside of If, Loop and Scan nodes is left as it is: a plan names layers of the main graph"
    ]


def _samples(
    model: onnx.ModelProto,
    inputs: Sequence[Any] | None,
    seed: int,
    report: Report,
    recovery: Recovery | None,
) -> list[Sample]:
    specs = specs_of(model)
    if inputs is None and recovery is not None:
        report.inputs = "held out of the calibration data"
        held_out = [complete(batch, specs) for batch in recovery.calibration.held_out[:_BATCHES]]
        return [{name: to_numpy(tensor) for name, tensor in batch.items()} for batch in held_out]
    if inputs is None:
        report.inputs = "random"
        try:
            return draw_inputs(specs, seed, vocab_size(model))
        except (MemoryError, ValueError) as error:
            raise (
                error
                if isinstance(error, InputError)
                else InputError(f"Inputs of the model's shapes cannot be drawn ({error}): give some.")
            ) from None
    report.inputs = "given"
    if not inputs:
        raise InputError("inputs is empty: give at least one sample, or None to have one drawn.")
    if isinstance(inputs[0], Mapping):
        return [check_sample(f"inputs[{index}]", each, specs) for index, each in enumerate(inputs)]
    return load_inputs(inputs, specs)


def _size(model: onnx.ModelProto, path: Path, folder: Path, ffn_blocks: int) -> Size:
    size = file_size(model, path, folder)
    return Size(len(model.graph.node), ffn_blocks, depth(model), count_parameters(model), size)
