"""The one way both kinds of graph are read: canonical operators over opaque values.

A view translates each native operator once into an `Op` of the vocabulary below; every spelling is then
declared over that vocabulary alone. Operators it does not translate keep their native name as `kind`.

    kind         inputs                   attrs
    add sub ...  elementwise operands     see `fxfuse.passes.elementwise.FUNCTIONS`
    cast         x                        dtype
    pass         x                        identity, or a reshape that keeps the last axis
    dropout      x                        active, p
    rounded      x                        scale: quantised by a scale that the file holds
    dequantize   integers, scale, zero    a quantised weight: see `fxfuse.passes.quantised`
    mean         x                        over the last axis, kept
    row_mean     x                        over the last axis, dropped
    column       x                        a new last axis of size 1
    expand       x                        broadcast
    rms_norm     x, gain                  eps, offset
    layer_norm   x, gain, bias            eps
    linear       x, weight, bias          transposed: weight is [in, out]
    part         x                        start, stop along the last axis
    transpose    x                        last two axes swapped
    route        x                        a router's choice of experts
    shape        x                        reads the shape alone
    whole        operands                 reason: it hides other operators and could not be written out

An operator whose native name is a kind, but which is not of that form, goes by "another" and its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch

from fxfuse.passes.records import Value

__all__ = ["Op", "Operand", "View", "is_constant", "op_of", "root", "strip"]


@dataclass(frozen=True)
class Op:
    """One operator in canonical form; `via` are values of the native graph that it covers besides its own."""

    kind: str
    inputs: tuple[Operand, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    via: tuple[Value, ...] = ()


# A value of the graph, a literal, an operator that one native node hides inside another, or nothing.
Operand: TypeAlias = Value | Op | float | None


class View(Protocol):
    """What a matcher may ask of a graph. Values are hashable handles; order is topological."""

    def values(self) -> Iterable[Value]:
        """Every computed value, producers before readers."""

    def op(self, value: Value) -> Op | None:
        """The canonical operator that computes `value`; None for graph inputs and stored constants."""

    def readers(self, value: Value) -> Sequence[Value]:
        """The outputs of every node that reads `value`."""

    def is_output(self, value: Value) -> bool:
        """Whether the graph returns `value` itself."""

    def is_constant(self, value: Value) -> bool:
        """Whether `value` depends on stored weights and literals alone."""

    def is_parameter(self, value: Value) -> bool:
        """Whether `value` is a stored weight that a user may train, rather than a literal."""

    def stored(self, value: Value) -> torch.Tensor:
        """The tensor behind a stored constant."""

    def shape(self, value: Value) -> tuple[int | None, ...] | None:
        """The shape as far as it is known; None for an unknown dimension or rank."""

    def dtype(self, value: Value) -> str | None:
        """The element type, spelled as in torch ("float32"); None when unknown."""

    def node_name(self, value: Value) -> str:
        """The native node's name, for messages."""

    def scope(self, value: Value) -> str:
        """The dotted path of the module that computed `value`; "" when the graph does not tell."""

    def origin(self, value: Value) -> tuple[str, ...] | None:
        """The blocks that an earlier fusion made `value` of, () where it left no names; None for others."""


def op_of(view: View, operand: Operand) -> Op | None:
    """The operator behind an operand, hidden or not."""
    if isinstance(operand, Op):
        return operand
    if operand is None or isinstance(operand, (int, float)):
        return None
    return view.op(operand)


def is_constant(view: View, operand: Operand) -> bool:
    """Whether an operand depends on stored weights and literals alone."""
    if isinstance(operand, Op):
        return all(is_constant(view, each) for each in operand.inputs)
    if operand is None:
        return False
    return isinstance(operand, (int, float)) or view.is_constant(operand)


def strip(view: View, operand: Operand, trail: set[Value] | None = None) -> Operand:
    """Walk up through identities, casts and inactive dropout; `trail` collects the values passed."""
    while True:
        op = op_of(view, operand)
        if op is None or op.kind not in ("pass", "cast", "dropout") or op.attrs.get("active"):
            return operand
        _note(trail, operand, op)
        operand = op.inputs[0]


def root(view: View, operand: Operand, trail: set[Value] | None = None) -> Operand:
    """Walk up through what changes neither numbers nor type: the residual stream's own identity."""
    while True:
        op = op_of(view, operand)
        if op is None or not _keeps_numbers(view, op):
            return operand
        _note(trail, operand, op)
        operand = op.inputs[0]


def _keeps_numbers(view: View, op: Op) -> bool:
    if op.kind == "cast":
        source = op.inputs[0]
        return not isinstance(source, Op) and view.dtype(source) == op.attrs["dtype"]
    return op.kind == "pass" or (op.kind == "dropout" and not op.attrs["active"])


def _note(trail: set[Value] | None, operand: Operand, op: Op) -> None:
    if trail is not None:
        trail.update(op.via)
        if not isinstance(operand, Op):
            trail.add(operand)
