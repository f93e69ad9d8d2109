"""Fuse a torch graph in a script that makes the graph itself."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar, overload

import torch
from torch import fx
from torch.export import ExportedProgram

from fxfuse.budget import Budget
from fxfuse.errors import InputError
from fxfuse.frontends.exported import ExportedGraph
from fxfuse.frontends.torch_graph import TorchGraph
from fxfuse.frontends.torch_inputs import embedding_rows
from fxfuse.frontends.torch_model import export_module
from fxfuse.frontends.torch_size import size_of
from fxfuse.passes.fx.inside import misses_inside
from fxfuse.pipeline import fuse as run_pipeline
from fxfuse.planning.files import AnyPlan
from fxfuse.planning.using import plan_for
from fxfuse.progress import Progress, silent
from fxfuse.quantisation.options import Quantise
from fxfuse.quantisation.torch import check_torch, quantise_graph
from fxfuse.recovery.using import recovery_for
from fxfuse.report import Report
from fxfuse.timing.target import AnyTarget, Target
from fxfuse.timing.using import torch_timing

__all__ = ["fuse"]

log = logging.getLogger("fxfuse")

Graph = TypeVar("Graph", fx.GraphModule, ExportedProgram)


@overload
def fuse(graph: Graph, example_inputs: Sequence[Any], **options: Any) -> tuple[Graph, Report]: ...


@overload
def fuse(
    graph: torch.nn.Module, example_inputs: Sequence[Any], **options: Any
) -> tuple[ExportedProgram, Report]: ...


def fuse(
    graph: Any,
    example_inputs: Sequence[Any],
    *,
    plan: AnyPlan | None = None,
    recover: Any = None,
    calibration: Any = None,
    quantize: str | None = None,
    quantize_exclude: str | None = None,
    target: AnyTarget = None,
    progress: Progress = silent,
    **budget: Any,
) -> tuple[Any, Report]:
    """Fuse the FFN chains of a torch graph, measured on `example_inputs`.

    Args:
        graph: A GraphModule (symbolic_trace, dynamo, `ExportedProgram.module()`), an ExportedProgram, or a
            module, which is exported with batch and sequence left open.
        example_inputs: The positional arguments of the graph, real tensors.
        plan: A plan or its file; its groups are fused instead of those that the budget would choose.
        recover: "fit", "distill" or `RecoveryOptions`: correct the weights of the groups on `calibration`.
        calibration: What `Calibration.of` reads: a file of token ids, batches, a DataLoader, a `Calibration`.
        quantize: "int8": store the weights of linear products so after fusing, through torchao. The budget
            then holds for what is returned: a group that falls under min_sqnr keeps its products float, and
            where max_kl is exceeded nothing is fused.
        quantize_exclude: A regular expression, searched for in the names of weights, which stay float.
        target: What the result has to be fast on, as torch.compile with inductor runs it: token counts such
            as 1 or (1, 8, 32), or a `Target`. Groups are timed there in every form, which takes a compilation
            of each the first time; those that do not pay stay sequential, and a graph that is slower as a
            whole at one of the counts is not returned.
        progress: Called with a short text at every step.
        budget: The fields of `Budget`: min_sqnr, max_kl, max_group, include, exclude, seed.

    Returns:
        A rewritten copy of the same kind (the graph itself where nothing was fused), a program for a module,
        and the report.

    Raises:
        InputError: An option or the inputs make no sense, the model gives NaN on them, or the plan is not for
            this model.
        VerificationError: The rewritten graph does not compute what it should.
    """
    bounds = Budget.of(budget, also=("plan", "recover", "calibration", "quantize", "target", "progress"))
    planned = plan_for(plan, bounds)
    recovery = recovery_for(recover, calibration)
    if (wish := Quantise.of(quantize, quantize_exclude)) is not None:
        check_torch(wish)
    if not isinstance(example_inputs, (list, tuple)):
        raise InputError("example_inputs must be a tuple or list of the graph's positional arguments.")
    Target.of(target)  # before what takes time
    report = Report(model=type(graph).__name__)
    if isinstance(graph, torch.nn.Module) and not isinstance(graph, fx.GraphModule):
        graph = export_module(graph, {str(place): each for place, each in enumerate(example_inputs)})
    front = _front(graph, example_inputs)
    if recovery is not None:
        recovery = recovery.checked(embedding_rows(front))
    with torch_timing(target, example_inputs, report, progress=progress, front=front) as timing:
        fused = run_pipeline(front, bounds, report, progress, planned, recovery=recovery, timing=timing)
    report.misses += misses_inside(front.view)
    report.before = size_of(front.module, front.weights, report.ffn_blocks)
    if fused is None:
        log.info("%s", report.summary())
        return graph, report
    report.after = size_of(fused.module, {**fused.view.weights, **fused.added}, report.ffn_blocks_left)
    if wish is not None:
        free = planned is not None or recovery is not None  # which min_sqnr does not judge either
        held = replace(bounds, min_sqnr=None) if free else bounds
        if quantise_graph(front, fused, wish, report, held, progress) is None:
            log.info("%s", report.summary())
            return graph, report
    log.info("%s", report.summary())
    return front.finish(fused) if isinstance(front, ExportedGraph) else fused.module, report


def _front(graph: Any, example_inputs: Sequence[Any]) -> TorchGraph:
    if isinstance(graph, ExportedProgram):
        return ExportedGraph(graph, example_inputs)
    if isinstance(graph, fx.GraphModule):
        _with_shapes(graph, example_inputs)
        return TorchGraph(graph, example_inputs, _weight_inputs(graph, example_inputs))
    raise InputError(f"fuse takes a module, a GraphModule or an ExportedProgram, not {type(graph).__name__}.")


def _with_shapes(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
    """symbolic_trace leaves no shapes behind; propagate them once from the example inputs."""
    if any("val" in node.meta or "example_value" in node.meta for node in graph.graph.nodes):
        return
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    # A weight that the graph reads by get_attr is no fake tensor.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with contextlib.suppress(Exception), torch.no_grad():
        FakeTensorProp(graph, mode).propagate(*example_inputs)


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
