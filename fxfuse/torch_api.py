"""Fuse a torch graph in a script that makes the graph itself."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import fx
from torch.export import ExportedProgram

from fxfuse.budget import Budget
from fxfuse.errors import InputError
from fxfuse.frontends.exported import ExportedGraph
from fxfuse.frontends.torch_graph import TorchGraph, size_of
from fxfuse.passes.fx.inside import misses_inside
from fxfuse.pipeline import fuse as run_pipeline
from fxfuse.planning.files import AnyPlan
from fxfuse.planning.using import plan_for
from fxfuse.report import Report

__all__ = ["fuse"]

log = logging.getLogger("fxfuse")

Graph = TypeVar("Graph", fx.GraphModule, ExportedProgram)


def fuse(
    graph: Graph, example_inputs: Sequence[Any], *, plan: AnyPlan | None = None, **budget: Any
) -> tuple[Graph, Report]:
    """Fuse the FFN chains of a torch graph, measured on `example_inputs`.

    Args:
        graph: A GraphModule (symbolic_trace, dynamo, `ExportedProgram.module()`) or an ExportedProgram.
        example_inputs: The positional arguments of the graph, real tensors.
        plan: A plan or its file; its groups are fused instead of those that the budget would choose.
        budget: The fields of `Budget`: min_sqnr, max_kl, max_group, include, exclude, seed.

    Returns:
        A rewritten copy of the same kind (the graph itself where nothing was fused), and the report.

    Raises:
        InputError: An option or the inputs make no sense, the model gives NaN on them, or the plan is not for
            this model.
        VerificationError: The rewritten graph does not compute what it should.
    """
    bounds = Budget.of(budget, also=("plan",))
    planned = plan_for(plan, bounds)
    if not isinstance(example_inputs, (list, tuple)):
        raise InputError("example_inputs must be a tuple or list of the graph's positional arguments.")
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
    fused = run_pipeline(front, bounds, report, plan=planned)
    report.misses += misses_inside(front.view)
    report.before = size_of(front.module, front.weights, report.ffn_blocks)
    if fused is None:
        log.info("%s", report.summary())
        return graph, report
    report.after = size_of(fused.module, {**fused.view.weights, **fused.added}, report.ffn_blocks_left)
    log.info("%s", report.summary())
    result = front.finish(fused) if isinstance(front, ExportedGraph) else fused.module
    return cast(Graph, result), report


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
