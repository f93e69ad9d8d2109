"""What a torch graph takes: sizes that it fixes, and how many tokens it knows."""

from __future__ import annotations

import torch
from torch import fx, nn

from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch
from fxfuse.frontends.torch_graph import TorchGraph
from fxfuse.passes.fx.calls import name_of
from fxfuse.passes.view import strip

__all__ = ["check_sizes", "embedding_rows"]


def check_sizes(front: TorchGraph, batch: Batch) -> None:
    """Hold a batch against the sizes that the graph was captured with, where it is not open in them.

    Raises:
        InputError: One differs; says which size the data need.
    """
    for node in front.module.graph.find_nodes(op="placeholder"):
        value, given = node.meta.get("val"), batch.get(str(node.target))
        if node in front.weights or given is None or not isinstance(value, torch.Tensor):
            continue
        fixed = [size if isinstance(size, int) else None for size in value.shape]
        shape = list(given.shape)
        if len(fixed) != len(shape) or any(f not in (None, s) for f, s in zip(fixed, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in fixed)
            raise InputError(
                f"The program takes {node.target} of the shape [{wanted}] and the data come as {shape}: set "
                "batch_size and context to these, or export the program with open sizes."
            )


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
