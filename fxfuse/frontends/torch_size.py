"""The extent of a torch graph: calls, depth, and the parameters that it reads."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx

from fxfuse.passes.fx.calls import ASSERTIONS, name_of
from fxfuse.report import Size

__all__ = ["depth", "size_of"]


def depth(module: fx.GraphModule) -> int:
    """Calls on the longest path through the graph, assertions apart."""
    longest: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        own = 1 if node.op.startswith("call_") and name_of(node) not in ASSERTIONS else 0
        longest[node] = own + max((longest[each] for each in node.all_input_nodes), default=0)
    return max(longest.values(), default=0)


def size_of(module: fx.GraphModule, weights: Mapping[fx.Node, torch.Tensor], ffn_blocks: int) -> Size:
    """The extent of a graph; parameters are those that it reads."""
    calls = [
        node for node in module.graph.nodes if node.op.startswith("call_") and name_of(node) not in ASSERTIONS
    ]
    read = [tensor for node, tensor in weights.items() if node.users]
    for node in module.graph.find_nodes(op="get_attr"):
        value = operator.attrgetter(str(node.target))(module)
        read += [value] if isinstance(value, torch.Tensor) else []
    for node in module.graph.find_nodes(op="call_module"):
        read += list(module.get_submodule(str(node.target)).parameters())
    parameters = sum({id(tensor): tensor.numel() for tensor in read}.values())
    return Size(len(calls), ffn_blocks, depth(module), parameters)
