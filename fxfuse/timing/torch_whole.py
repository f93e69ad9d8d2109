"""A whole torch graph before and after, each compiled in a process of its own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxfuse.frontends.torch_graph import FusedGraph, TorchGraph
from fxfuse.report import WholeTiming
from fxfuse.timing.contest import BASELINE
from fxfuse.timing.pairs import FUSED, compare, turn
from fxfuse.timing.stages import seats_for
from fxfuse.timing.target import Target
from fxfuse.timing.wording import token_count
from fxfuse.timing.workers import Failure, Worker

__all__ = ["TorchWhole", "values_at"]

FACTORY = "fxfuse.timing.torch_runs:make_graph"


class TorchWhole:
    """Times a rewritten graph against the original; called with what `TorchGraph.apply` returned."""

    def __init__(
        self,
        front: TorchGraph,
        target: Target,
        inner: str,
        options: Mapping[str, Any],
        progress: Callable[[str], None],
    ) -> None:
        self._front, self._target, self._progress = front, target, progress
        self._compile = inner, dict(options)
        self.notes: list[str] = []

    def __call__(self, fused: FusedGraph) -> list[WholeTiming] | str:
        """The times by token count, or why there are none."""
        target, front = self._target, self._front
        size = sum(each.nbytes for each in front.inputs.values() if isinstance(each, torch.Tensor))
        if seats_for(3 * size, target.device) < 2:
            return "there is not enough memory for both models at a time"
        self._progress("timing the whole model")
        graphs = {BASELINE: (front.module, {}), FUSED: (fused.module, fused.added)}
        try:
            with contextlib.ExitStack() as stack:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fxfuse-timing-"))
                workers = {}
                for name, (module, added) in graphs.items():
                    path = Path(folder) / f"{name}.pt"
                    torch.save((module, _values(front, module, added)), path)
                    worker = Worker(FACTORY, *self._compile, target.device, target.threads, quiet=True)
                    workers[name] = stack.enter_context(worker)
                    worker.begin("open", str(path))
                for worker in workers.values():
                    worker.finish()
                return [self._compare(workers, tokens) for tokens in target.tokens]
        except Failure as failure:
            return str(failure).rstrip(".")
        except Exception as error:  # what cannot be pickled is told in many ways
            return f"it cannot be given to another process ({type(error).__name__})"

    def _compare(self, workers: Mapping[str, Worker], tokens: int) -> WholeTiming:
        changed, known = values_at(self._front.inputs, tokens)
        if not known:
            note = (
                "the graph's inputs are of fixed shapes, so the whole model was timed on the example inputs "
                f"and not at {token_count(tokens)}"
            )
            self.notes += [note] if note not in self.notes else []
        for worker in workers.values():
            worker.begin("prepare", changed)
        for worker in workers.values():
            worker.finish()
        return compare({name: turn(worker) for name, worker in workers.items()}, tokens)


def values_at(inputs: Mapping[fx.Node, Any], tokens: int) -> tuple[dict[str, torch.Tensor], bool]:
    """The inputs whose shape follows the token count, by name, in one row; and whether there are any.

    The count is the open size at the second place of the first tensor that has one.
    """
    shapes = {node: _dims(node, value) for node, value in inputs.items() if isinstance(value, torch.Tensor)}
    sizes = {dim: size for dims in shapes.values() for dim, size in dims if not isinstance(dim, int)}
    count = next(
        (dims[1][0] for dims in shapes.values() if len(dims) > 1 and not isinstance(dims[1][0], int)), None
    )
    if count is None:
        return {}, False
    rows = {dims[0][0] for dims in shapes.values() if len(dims) > 1 and dims[0][0] in sizes}
    wanted = {**sizes, **dict.fromkeys(rows, 1), count: tokens}
    changed = {}
    for node, dims in shapes.items():
        value = inputs[node]
        for axis, (dim, size) in enumerate(dims):
            if wanted.get(dim, size) != size:
                places = torch.arange(wanted[dim], device=value.device) % size
                value = value.index_select(axis, places)
        if value is not inputs[node]:
            changed[node.name] = value
    return changed, True


def _dims(node: fx.Node, value: torch.Tensor) -> list[tuple[Any, int]]:
    """Each axis as the graph has it, a number or an open size's name, with its size here."""
    meta = node.meta.get("val")
    own = meta.shape if isinstance(meta, torch.Tensor) else value.shape
    names = [each if isinstance(each, int) else str(each) for each in own]
    return list(zip(names, value.shape, strict=True))


def _values(front: TorchGraph, module: fx.GraphModule, added: Mapping[fx.Node, Any]) -> dict[str, Any]:
    """A value for every placeholder of a module, by name in order."""
    known = {node.name: value for node, value in front.inputs.items()}
    known |= {node.name: value for node, value in added.items()}
    return {node.name: known[node.name] for node in module.graph.find_nodes(op="placeholder")}
