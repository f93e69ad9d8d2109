"""Compute chosen values of a torch.fx graph from values that are known, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

__all__ = ["compute"]


@torch.no_grad()
def compute(module: fx.GraphModule, wanted: Iterable[fx.Node], known: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
    """The values of `wanted`; nodes above a known one are not run, and values are freed after their last use."""
    wanted = list(wanted)
    needed = _needed(wanted, known)
    interpreter = fx.Interpreter(module)
    interpreter.env = dict(known)
    remaining = {node: sum(user in needed for user in node.users) for node in needed}
    for node in module.graph.nodes:
        if node not in needed or node in known:
            continue
        interpreter.env[node] = interpreter.run_node(node)
        for source in node.all_input_nodes:
            remaining[source] = remaining.get(source, 0) - 1
            if remaining[source] <= 0 and source not in known and source not in wanted:
                del interpreter.env[source]
    return {node: interpreter.env[node] for node in wanted}


def _needed(wanted: list[fx.Node], known: Mapping[fx.Node, Any]) -> set[fx.Node]:
    needed: set[fx.Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack += [] if node in known else node.all_input_nodes
    return needed
