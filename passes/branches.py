"""What the branches of a residual stream hold: attention, an FFN, experts, something else.

1. A branch is all that is computed from the state it starts at; masks, positions and an encoder's states,
   which come from elsewhere, are not looked into.
2. A router makes it experts; an attention operator, a softmax or, without a convolution, a product of two
   values of the branch makes it attention; two products with weights make it an FFN; the rest is "other".
3. A branch that is a sum is read part by part: attention and FFN in parallel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fxfuse.passes.records import Value
from fxfuse.passes.spellings.affine import peel
from fxfuse.passes.spellings.experts import match_experts
from fxfuse.passes.stream import Stream, Update, values_in
from fxfuse.passes.view import Op, Operand, View, is_constant, op_of, strip

__all__ = ["Branch", "Branches", "is_product", "name_of_branch"]

_ATTENTION = re.compile(r"attention|softmax", re.IGNORECASE)
_EXPERTS = re.compile(r"\bmoe\b|qmoe|grouped_mm|experts", re.IGNORECASE)
_PRODUCT = re.compile(r"matmul|gemm|einsum|linear|bmm|mm$|^mm", re.IGNORECASE)
_CONVOLUTION = re.compile(r"conv", re.IGNORECASE)
_SIZE = 20_000  # operators of one branch that are looked at
_PARTS = 8
_NESTED = 16  # streams inside streams


@dataclass(frozen=True)
class Branch:
    """One part of what an update adds: `values` are all it computes, `products` those that are products."""

    kind: str  # "attention", "ffn", "experts" or "other"
    output: Operand
    values: tuple[Value, ...]
    products: tuple[Value, ...]
    told_by: Value | None  # the operator that makes it attention or experts


class Branches:
    """Reads the branches of `streams`; every value knows the latest state that it was computed from."""

    def __init__(self, view: View, streams: Iterable[Stream]) -> None:
        self.view = view
        self._places: dict[Value, int] = {value: place for place, value in enumerate(view.values())}
        self._latest: dict[Value, Value] = {}
        self._home = {state: stream for stream in reversed(list(streams)) for state in stream.states}
        states = set(self._home)
        for value in [*(each for each in states if each not in self._places), *self._places]:
            self._note(value, states)

    def order(self, value: Value) -> int:
        """The place of a value among all; graph inputs come first."""
        return self._places.get(value, -1)

    def state_of(self, operand: Operand) -> Value | None:
        """The latest state of any stream that a value was computed from."""
        if isinstance(operand, Op):
            return self._last(values_in(operand))
        return None if operand is None or isinstance(operand, (int, float)) else self._latest.get(operand)

    def reads_elsewhere(self, branch: Branch, own: frozenset[Value]) -> bool:
        """Whether a branch reads states of another stream, as cross-attention does."""
        inside = set(branch.values)
        for value in branch.values:
            op = self.view.op(value)
            for each in values_in(op) if op is not None else ():
                state = self._latest.get(each)
                if state is not None and each not in inside and not self._is_inside(state, own):
                    return True
        return False

    def read(self, stream: Stream, update: Update) -> list[Branch]:
        """The parts of an update's branch, in the order they are written."""
        own = frozenset(stream.states)
        found = [
            self._branch(part, own, update)
            for operand in update.branch
            for part in self._parts(operand, own)
            if not is_constant(self.view, part)
        ]
        if is_product(self.view, update.out) and found:  # which adds the stream as its bias
            found[0] = replace(found[0], products=(*found[0].products, update.out))
            found[0] = replace(found[0], kind=self._kind(found[0].values, found[0].products)[0])
        return [each for each in found if each.values] or found[:1]

    def _note(self, value: Value, states: set[Value]) -> None:
        op = self.view.op(value)
        if value in states:
            self._latest[value] = value
        elif op is not None and op.kind != "shape":
            last = self._last(values_in(op))
            if last is not None:
                self._latest[value] = last

    def _last(self, values: Iterable[Value]) -> Value | None:
        known = [self._latest[each] for each in values if each in self._latest]
        return max(known, key=self.order) if known else None

    def _parts(self, operand: Operand, own: frozenset[Value]) -> list[Operand]:
        """The addends of a branch, where both are computed from the stream."""
        stack, parts = [operand], list[Operand]()
        while stack:
            part = stack.pop()
            inner, op = self._bare(part)
            computed = [each for each in op.inputs if self.state_of(each) is not None] if op else []
            whole = inner in own or len(parts) + len(stack) >= _PARTS
            if op is None or whole or op.kind not in ("add", "Sum") or len(computed) < 2:
                parts.append(part)
            else:
                stack.extend(reversed(computed))
        return parts

    def _bare(self, operand: Operand) -> tuple[Operand, Op | None]:
        """What is added, without constants applied to it as a whole."""
        for _ in range(4):
            inner = strip(self.view, operand)
            op = op_of(self.view, inner)
            peeled = peel(self.view, op) if op is not None else None
            if peeled is None:
                return inner, op
            operand = peeled[0]
        return operand, op_of(self.view, operand)

    def _branch(self, operand: Operand, own: frozenset[Value], update: Update) -> Branch:
        values = self._region(operand, own, update)
        products = tuple(each for each in values if is_product(self.view, each))
        kind, told_by = self._kind(values, products)
        return Branch(kind, operand, values, products, told_by)

    def _region(self, operand: Operand, own: frozenset[Value], update: Update) -> tuple[Value, ...]:
        """All values between the state and `operand`, producers first."""
        state = self.state_of(operand)
        first = min(
            self.order(update.before), self.order(state) if state is not None else self.order(update.before)
        )
        stack, seen = list(values_in(Op("", (operand,)))), set[Value]()
        while stack and len(seen) < _SIZE:
            value = stack.pop()
            latest = self._latest.get(value)
            if value in seen or value in own or latest is None or self.order(latest) < first:
                continue
            if value in self._home and not self._is_inside(value, own):
                continue
            seen.add(value)
            op = self.view.op(value)
            stack.extend(values_in(op) if op is not None else ())
        return tuple(sorted(seen, key=self.order))

    def _is_inside(self, state: Value, own: frozenset[Value]) -> bool:
        """Whether a state is one of a stream's own, or of a stream inside one of its branches."""
        for _ in range(_NESTED):
            if state in own:
                return True
            origin = self._home[state].origin
            if origin is None or origin == state:
                return False
            state = origin
        return False

    def _kind(self, values: tuple[Value, ...], products: tuple[Value, ...]) -> tuple[str, Value | None]:
        for value in values:
            op = self.view.op(value)
            if match_experts(self.view, value) is not None or (op is not None and _EXPERTS.search(op.kind)):
                return "experts", value
        ops = [(value, op) for value in values if (op := self.view.op(value)) is not None]
        named = next((value for value, op in ops if _ATTENTION.search(op.kind)), None)
        if named is not None:
            return "attention", named
        if any(_CONVOLUTION.search(op.kind) and not is_product(self.view, value) for value, op in ops):
            return "other", None
        mixed = next((value for value, op in ops if self._mixes(value, op)), None)
        return ("attention" if mixed is not None else "ffn" if len(products) > 1 else "other"), mixed

    def _mixes(self, value: Value, op: Op) -> bool:
        """Whether an operator multiplies two matrices that the branch computes, as attention does."""
        operands = op.inputs[:2] if op.kind == "linear" else op.inputs
        return is_product(self.view, value) and sum(self.state_of(each) is not None for each in operands) > 1


def is_product(view: View, value: Value) -> bool:
    """Whether an operator is a matrix product, with a weight or without, or a convolution that is one."""
    op = view.op(value)
    if op is None:
        return False
    if _CONVOLUTION.search(op.kind) and len(op.inputs) > 1:
        kernel = view.shape(op.inputs[1]) if not isinstance(op.inputs[1], Op) else None
        return kernel is not None and all(size == 1 for size in kernel[2:])
    return _PRODUCT.search(op.kind) is not None


def name_of_branch(view: View, branch: Branch, out: Value) -> str:
    """The layer path that all products of a branch share; the node that adds it where they share none."""
    values = branch.products or branch.values
    scopes = [scope.split(".") for value in values if (scope := view.scope(value))]
    return ".".join(os.path.commonprefix(scopes)) or view.node_name(out)
