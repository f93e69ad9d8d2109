"""What a block is called: the layer path that its parts share, as users write it ("model.layers.3.mlp").

Exporters note paths at nodes, optimisers drop them there, but some of the weights keep their names: so the
products are asked first, then the weights and biases of the FFN, its activation, the gain of the norm before
it. A tensor that optimisers made one for several layers is named after the first of them, and is not asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from fxfuse.passes.records import Value
from fxfuse.passes.spellings.ffns import FFNMatch
from fxfuse.passes.spellings.norms import match_norm
from fxfuse.passes.view import Op, Operand, View

__all__ = ["name_of_block"]


def name_of_block(view: View, match: FFNMatch, out: Value) -> str:
    """The path of the FFN `match`; the name of the node that computes `out` where the graph tells none."""
    shared = _shared([view.scope(each) for each in match.products])
    named = shared or _of_weights(view, match) or _of_activation(view, match) or _of_norm(view, match)
    return named or view.node_name(out)


def _of_weights(view: View, match: FFNMatch) -> str:
    linears = [each for each in (match.ffn.gate, match.ffn.up, match.ffn.down) if each is not None]
    operands = [each.weight for each in linears]
    paths = _paths(view, [*operands, *(step.operand for each in linears for step in each.steps)])
    return _shared(paths) if len(paths) > 1 else _parent(paths)


def _of_activation(view: View, match: FFNMatch) -> str:
    """The module that multiplies gate and up, which quantisers leave alone; an ungated FFN may have none."""
    output = match.ffn.activation.output
    return "" if isinstance(output, Op) or match.ffn.up is None else view.scope(output)


def _of_norm(view: View, match: FFNMatch) -> str:
    norm = match_norm(view, match.source, set())
    return _parent(_paths(view, [step.operand for step in norm.gain])) if norm is not None else ""


def _paths(view: View, operands: Iterable[Operand]) -> list[str]:
    """The paths that the stored tensors behind some constants are named by, each once."""
    found: dict[str, None] = {}
    stack = list(operands)
    while stack:
        operand = stack.pop()
        if operand is None or isinstance(operand, (int, float)):
            continue
        op = operand if isinstance(operand, Op) else view.op(operand)
        if op is not None:
            stack.extend(op.inputs)
        elif len(view.readers(operand)) < 2 and view.scope(operand):
            found[view.scope(operand)] = None
    return list(found)


def _shared(paths: list[str]) -> str:
    return ".".join(os.path.commonprefix([path.split(".") for path in paths]))


def _parent(paths: list[str]) -> str:
    """The module that holds what the only path names."""
    return paths[0].rpartition(".")[0] or paths[0] if len(paths) == 1 else ""
