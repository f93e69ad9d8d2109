"""Compute chosen values of a torch.fx graph from values that are known, and nothing else.

    setitem(cache, 0, k);  y = cache * 2      y needs the write, though no edge of the graph says so
    x1 = iadd(x0, f)                          x0 is handed out as it was before the write

Both are told by `Writes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from fxfuse.passes.fx.writes import Writes

__all__ = ["compute"]


@torch.no_grad()
def compute(
    module: fx.GraphModule,
    wanted: Iterable[fx.Node],
    known: Mapping[fx.Node, Any],
    writes: Writes | None = None,
) -> dict[fx.Node, Any]:
    """The values of `wanted`; nodes above a known one are not run, and values are freed after their last use.

    Known values are written into where the graph writes into them; tensors of the module are not. `writes`
    are those of the module, where they are known already.
    """
    wanted = list(wanted)
    writes = writes or Writes(module)
    written = writes.by_storage()
    needed = _needed(module, wanted, known, writes)
    interpreter = fx.Interpreter(module, garbage_collect_values=False)  # done below
    interpreter.env = dict(known)
    kept = {node: known[node] for node in wanted if node in known}
    passing = _written_later(wanted, writes) if written else set()
    remaining = {node: sum(user in needed for user in node.users) for node in needed}
    for node in module.graph.nodes:
        if node not in needed or node in known:
            continue
        value = interpreter.run_node(node)
        if node.op == "get_attr" and node in written:
            value = value.clone()
        interpreter.env[node] = value
        if node in passing:
            kept[node] = value.clone()
        for source in node.all_input_nodes:
            remaining[source] = remaining.get(source, 0) - 1
            if remaining[source] <= 0 and source not in known and source not in wanted:
                interpreter.env.pop(source, None)
    return {node: kept[node] if node in kept else interpreter.env[node] for node in wanted}


def _written_later(wanted: list[fx.Node], writes: Writes) -> set[fx.Node]:
    """Those of `wanted` that a call writes over once everything has read them."""
    written = writes.by_storage()
    return {node for node in wanted if writes.storage(node) in written and not writes.spoil(node)}


def _needed(
    module: fx.GraphModule, wanted: list[fx.Node], known: Mapping[fx.Node, Any], writes: Writes
) -> set[fx.Node]:
    """What `wanted` are computed from, with every earlier write into what one of these reads."""
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    written = writes.by_storage()
    needed: set[fx.Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node in needed:
            continue
        needed.add(node)
        if node in known:
            continue
        for source in node.all_input_nodes:
            stack.append(source)
            if source.op == "placeholder" or source not in known:
                writers = written.get(writes.storage(source), ())
                stack += [writer for writer in writers if order[writer] < order[node]]
    return needed
