"""The calls for scripts: fuse a torch graph, fuse an ONNX file, export a module fused."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import onnx
import torch
from onnx_graphsurgeon.logger import G_LOGGER
from torch import fx
from torch.export import ExportedProgram

from fxfuse.budget import Budget
from fxfuse.errors import InputError
from fxfuse.external import data_files
from fxfuse.files import default_output, stage
from fxfuse.frontends.exported import ExportedGraph
from fxfuse.frontends.onnx_file import OnnxFile, depth, to_numpy, vocab_size
from fxfuse.frontends.torch_graph import TorchGraph, size_of
from fxfuse.inputs import Sample, check_sample, draw_inputs, load_inputs, specs_of
from fxfuse.onnxio import count_parameters, file_size, load_model
from fxfuse.pipeline import Progress
from fxfuse.pipeline import fuse as run_pipeline
from fxfuse.report import Report, Size
from fxfuse.sessions import Provider

__all__ = ["fuse", "fuse_onnx", "export_onnx", "default_output", "quiet_exporter"]

log = logging.getLogger("fxfuse")

Graph = TypeVar("Graph", fx.GraphModule, ExportedProgram)
AnyPath = str | os.PathLike[str]


def fuse(graph: Graph, example_inputs: Sequence[Any], **budget: Any) -> tuple[Graph, Report]:
    """Fuse the FFN chains of a torch graph, measured on `example_inputs`.

    Args:
        graph: A GraphModule (symbolic_trace, dynamo, `ExportedProgram.module()`) or an ExportedProgram.
        example_inputs: The positional arguments of the graph, real tensors.
        budget: The fields of `Budget`: min_sqnr, max_kl, max_group, include, exclude, seed.

    Returns:
        A rewritten copy of the same kind (the graph itself where nothing was fused), and the report.

    Raises:
        InputError: An option or the inputs make no sense, or the model gives NaN on them.
        VerificationError: The rewritten graph does not compute what it should.
    """
    bounds = Budget.of(budget)
    report = Report(model=type(graph).__name__)
    if isinstance(graph, ExportedProgram):
        front: TorchGraph = ExportedGraph(graph, example_inputs)
    elif isinstance(graph, fx.GraphModule):
        _with_shapes(graph, example_inputs)
        front = TorchGraph(graph, example_inputs, _weight_inputs(graph, example_inputs))
    else:
        raise InputError(
            f"fuse takes a torch.fx GraphModule or an ExportedProgram, not {type(graph).__name__}."
        )
    fused = run_pipeline(front, bounds, report)
    before = sum(chain.length for chain in report.chains)
    report.before = size_of(front.module, front.weights, before)
    if fused is None:
        log.info("%s", report.summary())
        return graph, report
    after = before - report.fused_blocks + len(report.groups)
    report.after = size_of(fused.module, {**fused.view.weights, **fused.added}, after)
    log.info("%s", report.summary())
    result = front.finish(fused) if isinstance(front, ExportedGraph) else fused.module
    return cast(Graph, result), report


def fuse_onnx(
    model_path: AnyPath,
    out_path: AnyPath | None = None,
    *,
    inputs: Sequence[AnyPath] | Sequence[Mapping[str, np.ndarray[Any, Any]]] | None = None,
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
        inputs: Samples to measure on, as .npz files or as dicts of arrays; drawn from `seed` by default.
        provider: "auto", "cuda" or "cpu".
        force: Overwrite the output, or the input.
        dry_run: Do everything but put the output in its place.
        progress: Called with a short text at every step.
        report: Filled instead of a new one, so that it can be read after an error.
        budget: The fields of `Budget`: min_sqnr, max_kl, max_group, include, exclude, seed.

    Returns:
        The report; its `output` is None where nothing was fused. A dry run names what it would have written.

    Raises:
        InputError: The model, the inputs, an option or the output's place cannot be used.
        VerificationError: The rewritten model does not compute what it should; nothing was written.
    """
    report = Report(model="") if report is None else report
    report.model = os.fspath(model_path)
    started = time.perf_counter()
    try:
        with G_LOGGER.suppress(G_LOGGER.ERROR):  # it prints, to stdout
            return _fuse_onnx(
                Path(model_path), out_path, inputs, provider, force, dry_run, progress, report, budget
            )
    except BaseException as error:
        report.error = report.error or str(error) or type(error).__name__
        report.output, report.after, report.groups, report.end_to_end = None, None, [], {}
        raise
    finally:
        report.seconds = round(time.perf_counter() - started, 3)


def export_onnx(
    model: torch.nn.Module,
    args: Sequence[Any],
    out_path: AnyPath,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    opset: int | None = None,
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
        provider: "auto", "cuda" or "cpu".
        force: Overwrite `out_path`.
        progress: Called with a short text at every step.
        budget: The fields of `Budget`.

    Raises:
        InputError: An option, the model's mode or the output's place cannot be used.
        VerificationError: The rewritten model does not compute what it should; nothing was written.
    """
    Budget.of(budget)
    if model.training:
        raise InputError("The model is in training mode: call model.eval() before export_onnx.")
    out = Path(out_path)
    with stage(out, force=force) as staging, tempfile.TemporaryDirectory(dir=staging.folder) as folder:
        plain = Path(folder) / "model.onnx"
        progress("exporting")
        sample = _export(model, tuple(args), dict(kwargs or {}), dynamic_shapes, opset, plain)
        report = fuse_onnx(
            plain, staging.path(out.name), inputs=[sample], provider=provider, progress=progress, **budget
        )
        if report.output is None:
            _copy_model(plain, staging.folder, out.name)
    report.model, report.output = type(model).__name__, str(out)
    return report


def _fuse_onnx(
    path: Path,
    out_path: AnyPath | None,
    inputs: Sequence[Any] | None,
    provider: Provider,
    force: bool,
    dry_run: bool,
    progress: Progress,
    report: Report,
    budget: Mapping[str, Any],
) -> Report:
    bounds = Budget.of(budget)
    out = Path(out_path) if out_path is not None else default_output(path)
    progress("reading the model")
    model, folder = load_model(path)
    samples = _samples(model, inputs, bounds.seed, report)
    sources = [path, *data_files(model, folder)]
    with _workspace(out, sources, force, dry_run) as workspace:
        front = OnnxFile(model, folder, samples, workspace, out.name, provider)
        report.notes += front.notes
        fused = run_pipeline(front, bounds, report, progress)
        before = sum(chain.length for chain in report.chains)
        report.before = _size(model, path, folder, before)
        if fused is None:
            raise _Nothing
        after = before - report.fused_blocks + len(report.groups)
        report.after = _size(fused.model, fused.path, workspace, after)
        report.output = str(out)
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


def _samples(model: onnx.ModelProto, inputs: Sequence[Any] | None, seed: int, report: Report) -> list[Sample]:
    specs = specs_of(model)
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


def _with_shapes(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
    """symbolic_trace leaves no shapes behind; propagate them once from the example inputs."""
    if any("val" in node.meta or "example_value" in node.meta for node in graph.graph.nodes):
        return
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    with contextlib.suppress(Exception), torch.no_grad():
        FakeTensorProp(graph).propagate(*example_inputs)


def _weight_inputs(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> dict[fx.Node, torch.Tensor]:
    """Parameters that a graph takes as inputs."""
    placeholders = graph.graph.find_nodes(op="placeholder")
    if len(placeholders) != len(example_inputs):
        raise InputError(
            f"The graph takes {len(placeholders)} inputs but example_inputs holds {len(example_inputs)}: "
            "give one for each."
        )
    pairs = zip(placeholders, example_inputs, strict=True)
    return {node: value for node, value in pairs if isinstance(value, torch.nn.Parameter)}


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
