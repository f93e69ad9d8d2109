"""The norm that a wide FFN reads: as the graph spells it, without its gain."""

from __future__ import annotations

import torch
from torch import fx
from torch.nn import functional as F

from fxfuse.passes.fx.calls import name_of
from fxfuse.passes.fx.view import FxView
from fxfuse.passes.records import Block

__all__ = ["cast", "is_aten", "node_of", "unit_norm"]


def unit_norm(view: FxView, first: Block) -> fx.Node:
    """The first block's norm without its gain, in the type of its weights."""
    norm = first.norm
    node = node_of(norm.unit) if norm.unit is not None else _without_gain(view, node_of(norm.operator))
    known = view.dtype(norm.unit if norm.unit is not None else norm.operator)
    # Where types are not told, a norm may have been computed in float32.
    return node if (known or "float32") == first.dtype else cast(view, node, first, first.dtype)


def _without_gain(view: FxView, node: fx.Node) -> fx.Node:
    """A copy of a norm operator whose gain and bias are left out."""
    graph = view.module.graph
    if node.op == "call_module":
        return _functional_norm(graph, node, view.module.get_submodule(str(node.target)))
    if name_of(node) == "getitem":
        whole = _without_gain(view, node_of(node.args[0]))
        return graph.call_function(node.target, (whole, 0))  # type: ignore[arg-type]
    args, kwargs = list(node.args), dict(node.kwargs)
    for name, index in (("weight", 2), ("bias", 3)):
        if name == "bias" and "rms_norm" in name_of(node):
            continue
        if len(args) > index:
            args[index] = None
        elif name in kwargs:
            kwargs[name] = None
    return graph.create_node(node.op, node.target, tuple(args), kwargs)


def _functional_norm(graph: fx.Graph, node: fx.Node, module: torch.nn.Module) -> fx.Node:
    assert isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm))
    x, shape = node.args[0], list(module.normalized_shape)
    if isinstance(module, torch.nn.LayerNorm):
        return graph.call_function(F.layer_norm, (x, shape, None, None, module.eps))
    return graph.call_function(F.rms_norm, (x, shape, None, module.eps))


def cast(view: FxView, node: fx.Node, first: Block, dtype: str) -> fx.Node:
    """`node` in `dtype`."""
    wanted = getattr(torch, dtype)
    if is_aten(view, first):
        return view.module.graph.call_function(torch.ops.aten.to.dtype, (node, wanted))
    return view.module.graph.call_method("to", (node, wanted))


def is_aten(view: FxView, first: Block) -> bool:
    """Whether the graph is written in aten operators."""
    return isinstance(node_of(first.out).target, torch._ops.OpOverload)


def node_of(value: object) -> fx.Node:
    """A value as the node it is."""
    assert isinstance(value, fx.Node)
    return value
