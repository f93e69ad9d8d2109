"""How many tokens a torch graph knows: the rows of the table that its input ids are looked up in."""

from __future__ import annotations

from torch import fx, nn

from fxfuse.frontends.torch_graph import TorchGraph
from fxfuse.passes.fx.calls import name_of
from fxfuse.passes.view import strip

__all__ = ["embedding_rows"]


def embedding_rows(front: TorchGraph) -> int | None:
    """The rows of the smallest table that a graph input is looked up in; None where there is none."""
    rows = [_rows(front, node) for node in front.module.graph.nodes]
    known = [each for each in rows if each is not None]
    return min(known) if known else None


def _rows(front: TorchGraph, node: fx.Node) -> int | None:
    """The rows of a table that `node` looks a graph input up in."""
    if node.op == "call_module":
        module = front.module.get_submodule(str(node.target))
        table = (
            module.weight if isinstance(module, nn.Embedding) and _reads_ids(front, node.args[0]) else None
        )
        return None if table is None else len(table)
    if node.op != "call_function" or name_of(node) != "embedding":
        return None
    both = [node.args[place] if len(node.args) > place else None for place in (0, 1)]
    tables = [each for each in both if isinstance(each, fx.Node) and front.view.is_constant(each)]
    if len(tables) != 1 or not any(_reads_ids(front, each) for each in both if each is not tables[0]):
        return None
    shape = front.view.shape(tables[0])
    return shape[0] if shape is not None and len(shape) == 2 else None


def _reads_ids(front: TorchGraph, operand: object) -> bool:
    """Whether an operand is a graph input, positions and types of tokens apart."""
    value = strip(front.view, operand) if isinstance(operand, fx.Node) else None
    if not isinstance(value, fx.Node) or value.op != "placeholder" or value in front.weights:
        return False
    return not any(word in str(value.target) for word in ("pos", "type"))
