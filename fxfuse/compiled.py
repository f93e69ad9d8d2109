"""A fused graph compiled by an inner backend, and kept true to its parameters at every call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import TracingContext

from fxfuse.frontends.dynamo_graph import DynamoGraph
from fxfuse.frontends.torch_graph import FusedGraph
from fxfuse.naming import span
from fxfuse.one_copy import Shared, objection
from fxfuse.passes.weights import Wide, sources
from fxfuse.report import Report
from fxfuse.stale import Followed, Watch

__all__ = ["Compiled", "CompiledGraph"]

log = logging.getLogger("fxfuse")

Compiled = Callable[..., Any]


class CompiledGraph:
    """The compiled graph; every call first makes sure that the wide weights are those of the parameters."""

    def __init__(
        self,
        front: DynamoGraph,
        fused: FusedGraph,
        compile_inner: Callable[..., Compiled],
        example_inputs: list[Any],
        report: Report,
        one_copy: bool = False,
    ) -> None:
        extra = list(fused.added.values())
        fakes = _static_fakes(extra)
        _carry_dynamo_facts(front.module, fused.module)
        self._wide = tuple(extra)
        self._fixed = _assumed_numbers(front, fused)
        self._report = report
        self._inner = compile_inner(fused.module, example_inputs + extra)
        del fakes
        # After the inner backend, which is given the parameters as dynamo knows them.
        groups = [_follow(fused, index, report, one_copy) for index in range(len(fused.groups))]
        report.notes.append(_memory(fused, groups))
        self._watch = Watch(groups)

    def __call__(self, *args: Any) -> Any:
        """Run on the arguments of the graph that dynamo captured.

        Raises:
            RuntimeError: Something changed that the wide weights cannot follow.
        """
        for place, known in self._fixed:
            if float(args[place]) != known:
                raise RuntimeError(
                    "A number of a fused block (an eps) changed after compilation: call "
                    "torch.compiler.reset() and compile again."
                )
        if self._watch.is_stale(args):
            self._watch.refresh(args)
            self._tell_refreshed()
        return self._inner(*args, *self._wide)

    def _tell_refreshed(self) -> None:
        note = (
            "weights changed after compilation: the wide ones were rebuilt; the loss is that of the old ones"
        )
        if note not in self._report.notes:
            self._report.notes.append(note)
            log.warning("fxfuse: %s", note)


def _follow(fused: FusedGraph, index: int, report: Report, one_copy: bool) -> Followed:
    """A group as it is followed from now on, with one copy of its weights if asked for and possible."""
    blocks, wide, _ = fused.groups[index]
    view = fused.view
    followed = Followed(view, blocks, wide, _positions(fused, sources(view, blocks)))
    followed.shared = Shared.held(view, blocks, wide)
    if followed.shared is not None or not one_copy:
        return followed
    reason = objection(view, blocks, wide)
    if reason is None and isinstance(wide, Wide):
        followed.shared = Shared.of(view, blocks, wide)
        followed.shared.join(view)
        return followed
    note = f"two copies of the weights of {span([block.name for block in blocks])} stay, since {reason}"
    report.notes.append(note)
    log.warning("fxfuse: %s", note)
    return followed


def _memory(fused: FusedGraph, groups: Sequence[Followed]) -> str:
    """How many bytes stand where."""
    storages = [tensor.untyped_storage() for tensor in fused.added.values()]
    added = {storage.data_ptr(): storage.nbytes() for storage in storages}
    parts = [part for group in groups if group.shared for part in group.shared.slices.values()]
    shared = {part.untyped_storage().data_ptr() for part in parts}
    beside = sum(size for place, size in added.items() if place not in shared)
    one = sum(size for place, size in added.items() if place in shared)
    if not one:
        return f"the wide weights take {beside / 1e6:,.1f} MB beside the model's own"
    return (
        f"one copy of the weights: parameters of the model are views of {one / 1e6:,.1f} MB of wide weights, "
        f"which have the norms' gains folded in; {beside / 1e6:,.1f} MB stand beside the model's own"
    )


def _positions(fused: FusedGraph, values: Sequence[object]) -> list[tuple[fx.Node, int]]:
    """Where among the call's arguments the sources of a wide weight come in."""
    places = {node: index for index, node in enumerate(fused.module.graph.find_nodes(op="placeholder"))}
    return [(value, places[value]) for value in values if isinstance(value, fx.Node) and value in places]


def _assumed_numbers(front: DynamoGraph, fused: FusedGraph) -> list[tuple[int, float]]:
    """Numbers (an eps) that the fused graph reads no more, as the first block's stands for all."""
    followed = {value for blocks, _, _ in fused.groups for value in sources(fused.view, blocks)}
    own = {node.name: node for node in fused.module.graph.find_nodes(op="placeholder")}
    found = []
    for place, node in enumerate(front.module.graph.find_nodes(op="placeholder")):
        tensor, copy = front.weights.get(node), own[node.name]
        if (
            tensor is not None
            and tensor.dim() == 0
            and node.users
            and not copy.users
            and copy not in followed
        ):
            found.append((place, float(tensor)))
    return found


def _static_fakes(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Fake tensors that keep the inner backend from taking the sizes of wide weights for dynamic ones.

    The fake mode remembers a fake only while something else holds it: keep them until all is compiled.
    """
    context = TracingContext.try_get()
    if context is None or context.fake_mode is None:
        return []
    return [context.fake_mode.from_tensor(tensor, static_shapes=True) for tensor in tensors]


def _carry_dynamo_facts(source: fx.GraphModule, target: fx.GraphModule) -> None:
    """What dynamo notes on a module and its placeholders for the inner backend, by name."""
    for name in ("_param_name_to_source", "_source_to_user_stacks", "_backend_id"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
    own = {node.name: node for node in target.graph.find_nodes(op="placeholder")}
    for node in source.graph.find_nodes(op="placeholder"):
        if hasattr(node, "_dynamo_source"):
            own[node.name]._dynamo_source = node._dynamo_source
