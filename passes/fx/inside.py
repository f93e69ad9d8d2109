"""FFN blocks inside of cond and while_loop: torch keeps those bodies as graphs of their own.

cond(pred, true_graph_0, false_graph_0, (x, W))     each graph: placeholders for x and W
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from fxfuse.passes.chains import find_chains
from fxfuse.passes.fx.calls import name_of
from fxfuse.passes.fx.view import FxView
from fxfuse.passes.records import Miss

__all__ = ["misses_inside"]


def misses_inside(view: FxView) -> list[Miss]:
    """One miss for every FFN block in a body of the graph, or in a body of one."""
    misses = []
    for node in view.module.graph.nodes:
        for name, inner in _bodies(view, node):
            found = find_chains(inner)
            blocks = [*(block for chain in found.chains for block in chain.blocks), *found.singles]
            where = f"it stands in {name}, a body of {name_of(node)}"
            reason = f"{where}: export the model to ONNX and fuse the file, where such bodies are fused too"
            misses += [Miss(block.name, reason) for block in blocks]
            misses += misses_inside(inner)
    return misses


def _bodies(view: FxView, node: fx.Node) -> Iterator[tuple[str, FxView]]:
    """The graphs that `node` calls, with the weights that it hands to them."""
    given = [each for arg in node.args if isinstance(arg, (tuple, list)) for each in arg]
    for arg in node.args if node.op == "call_function" else ():
        name = str(arg.target) if isinstance(arg, fx.Node) and arg.op == "get_attr" else ""
        inner = getattr(view.module, name, None) if name else None
        if not isinstance(inner, fx.GraphModule):
            continue
        places = inner.graph.find_nodes(op="placeholder")
        pairs = zip(places, given, strict=True) if len(places) == len(given) else ()
        weights = {
            place: view.stored(value)
            for place, value in pairs
            if isinstance(value, fx.Node) and view.op(value) is None and view.is_constant(value)
        }
        yield name, FxView(inner, weights)
