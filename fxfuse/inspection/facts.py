"""Facts of one line: which norm a branch reads, what an FFN computes, its width, what tells attention."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from fxfuse.passes.branches import Branch, Branches
from fxfuse.passes.elementwise import FUNCTIONS
from fxfuse.passes.norm_places import NormPlace
from fxfuse.passes.records import Block, Norm, Value
from fxfuse.passes.spellings.ffns import FFNMatch, match_ffn
from fxfuse.passes.spellings.norms import match_norm
from fxfuse.passes.stream import Stream
from fxfuse.passes.view import Op, Operand, View, strip

__all__ = ["block_facts", "branch_facts", "norm_facts", "operators"]

_NORMS = {"rms": "RMSNorm", "layer": "LayerNorm"}
_MOVES = re.compile(r"cast|pass|shape|dropout|part|(un)?squeeze|transpose|expand|slice|gather", re.IGNORECASE)
_SHOWN = 5


def norm_facts(norm: Norm | None) -> dict[str, Any]:
    """Kind and eps of a norm."""
    return {} if norm is None else {"norm": _NORMS[norm.kind], "eps": norm.eps}


def block_facts(block: Block) -> dict[str, Any]:
    """All that is known of a block."""
    return {
        **norm_facts(block.norm),
        "activation": block.ffn.activation.name,
        "gated": block.gated,
        "hidden_size": block.hidden_size,
        "intermediate_size": block.intermediate_size,
        "dtype": block.dtype,
    }


def branch_facts(
    view: View,
    branches: Branches,
    stream: Stream,
    branch: Branch,
    norm_at: Callable[[Value], NormPlace | None],
) -> dict[str, Any]:
    """What is known of a branch that is no block."""
    own = frozenset(stream.states)
    facts = norm_facts(_norm_before(view, branch, own, norm_at))
    if branch.kind == "attention":
        op = view.op(branch.told_by) if branch.told_by is not None else None
        facts["operator"] = op.kind if op is not None else "?"
        if branches.reads_elsewhere(branch, own):
            facts["cross"] = True
    elif branch.kind == "ffn":
        facts |= _ffn_facts(view, branch.output)
    elif branch.kind == "other":
        facts["operators"] = operators(view, branch.values)
    return facts


def operators(view: View, values: tuple[Value, ...]) -> list[str]:
    """The kinds of operators, the most frequent first; elementwise ones only where there is nothing else."""
    kinds = Counter(op.kind for value in values if (op := view.op(value)) is not None)
    told = [kind for kind, _ in kinds.most_common() if not _MOVES.search(kind)]
    return ([kind for kind in told if kind not in FUNCTIONS] or told)[:_SHOWN]


def _norm_before(
    view: View, branch: Branch, own: frozenset[Value], norm_at: Callable[[Value], NormPlace | None]
) -> Norm | None:
    places = [place for value in branch.values if (place := norm_at(value)) is not None]
    return next((each.norm for each in places if each.norm and strip(view, each.source) in own), None)


def _ffn_facts(view: View, output: Operand) -> dict[str, Any]:
    """Activation and sizes of an FFN that some rule keeps from being a block."""
    output = strip(view, output)
    norm = match_norm(view, output, set()) if _is_value(output) else None
    source = strip(view, norm.source) if norm is not None else output
    match = match_ffn(view, source) if _is_value(source) else None
    if not isinstance(match, FFNMatch):
        return {}
    facts: dict[str, Any] = {"activation": match.ffn.activation.name, "gated": match.ffn.up is not None}
    shape = view.shape(match.ffn.down.weight)
    if shape is not None and len(shape) == 2:
        hidden, intermediate = shape[::-1] if match.ffn.down.transposed else shape
        facts |= {"hidden_size": hidden, "intermediate_size": intermediate}
    return facts


def _is_value(operand: Operand) -> bool:
    return operand is not None and not isinstance(operand, (Op, int, float))
