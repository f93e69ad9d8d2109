"""Where the norms of a graph stand: before which branch, inside which, on the stream itself, at its ends."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fxfuse.passes.near_norms import near_norm
from fxfuse.passes.records import Block, Norm, Value
from fxfuse.passes.spellings.affine import peel
from fxfuse.passes.spellings.norms import match_norm
from fxfuse.passes.view import Operand, View, op_of, strip

__all__ = ["NormPlace", "find_norms"]

_MAY_BE = re.compile(r"norm|^(mul|div|add|sub)$", re.IGNORECASE)


@dataclass(frozen=True)
class NormPlace:
    """A norm by its last value, gain and bias included; `reason` where it only looks like one."""

    output: Value
    source: Operand
    norm: Norm | None
    reason: str | None = None


def find_norms(view: View, blocks: Iterable[Block] = ()) -> list[NormPlace]:
    """All norms of a graph and what looks like one, each once and in order; those of `blocks` are known."""
    found: dict[object, NormPlace] = {}
    known, theirs = set[Value](), dict[Value, Norm]()
    for block in blocks:
        known |= block.interior
        theirs[block.norm.output] = block.norm
    for value in view.values():
        if value in theirs:
            found[value] = NormPlace(value, theirs[value].source, theirs[value])
        op = view.op(value)
        if op is None or value in known or not _MAY_BE.search(op.kind) or view.is_constant(value):
            continue
        place = _norm_at(view, value)
        if place is not None:
            found[_core(view, value)] = place
    return list(found.values())


def _norm_at(view: View, value: Value) -> NormPlace | None:
    norm = match_norm(view, value, set())
    if norm is not None:
        return NormPlace(value, norm.source, norm)
    reason = near_norm(view, value)
    return None if reason is None else NormPlace(value, None, None, reason)


def _core(view: View, value: Value) -> Operand:
    """What a norm is without gain and bias, so that each is counted once."""
    operand: Operand = value
    while True:
        operand = strip(view, operand)
        op = op_of(view, operand)
        peeled = peel(view, op) if op is not None else None
        if peeled is None:
            return operand
        operand = peeled[0]
