r"""An FFN, read upwards from its last product.

    h ---> gate ---> act ---> mul ---> down ---> constants
      \--> up   --------------^

Gated with two products, with one packed product split in two, or ungated. Between the first products and
`down` stands one elementwise region; what it computes is read off at probe points, so an activation may be
one operator or twenty. Biases and multipliers on either side are steps of the `Linear` beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxfuse.passes.elementwise import evaluate, region
from fxfuse.passes.records import FFN, Activation, Linear, Step, Value
from fxfuse.passes.spellings.activations import GATE_PROBES, UP_PROBES, name_of, role_of
from fxfuse.passes.spellings.affine import is_per_channel, peel_while
from fxfuse.passes.view import Op, Operand, View, op_of, strip

__all__ = ["FFNMatch", "NearlyFFN", "match_ffn"]


@dataclass(frozen=True)
class FFNMatch:
    """An FFN that was recognised: what it reads (`source`), what it covers, and what speaks against it."""

    ffn: FFN
    source: Value
    trail: frozenset[Value]
    products: tuple[Value, Value]  # the gate's and down's
    objection: str | None


@dataclass(frozen=True)
class NearlyFFN:
    """Something that is almost an FFN: why it is none, and what its first products read."""

    reason: str
    sources: tuple[Value, ...]


def match_ffn(view: View, output: Value) -> FFNMatch | NearlyFFN | None:
    """The FFN that computes `output`; a reason where it is almost one; None where it is none."""
    trail: set[Value] = set()
    rates: list[float] = []
    down = _linear(view, output, trail, rates)
    if down is None:
        return None
    linear, product, inner = down
    middle = pass_reshapes(view, inner, trail)
    if isinstance(middle, Op) or middle is None or isinstance(middle, (int, float)):
        return None
    inside = region(view, middle, lambda each: _first(view, each) is not None)
    firsts = [_First(view, leaf) for leaf in inside.leaves]
    firsts += [_First(view, each) for each in _products_behind(view, inside.foreign)]
    sources = tuple(first.source for first in firsts)
    if inside.foreign or not inside.interior:
        reason = _almost(view, firsts, inside.foreign)
        return NearlyFFN(reason, sources) if reason is not None else None
    trail |= inside.interior
    for first in firsts:
        trail |= first.trail
        rates += first.rates
    objection = _objection(view, firsts, inside.constants)
    if objection is not None:
        return NearlyFFN(objection, sources)
    ordered = _order(view, middle, firsts)
    if ordered is None:
        return NearlyFFN("the activation region is not of the form act(gate) * up", sources)
    gate, up, activation = ordered
    if inside.dropout or rates:
        objection = f"dropout (p={inside.dropout or rates[0]:g}) is active: call model.eval() first"
    ffn = FFN(gate.linear, up.linear if up else None, linear, activation)
    return FFNMatch(ffn, gate.source, frozenset(trail), (gate.product, product), objection)


class _First:
    """One of the products that read the norm."""

    def __init__(self, view: View, leaf: Value) -> None:
        self.leaf = leaf
        self.trail: set[Value] = set()
        self.rates: list[float] = []
        found = _first(view, leaf, self.trail, self.rates)
        assert found is not None
        self.linear, self.product, source = found
        self.source: Value = strip(view, source, self.trail)


def _first(
    view: View, leaf: Value, trail: set[Value] | None = None, rates: list[float] | None = None
) -> tuple[Linear, Value, Operand] | None:
    """A product, or a part of a packed one, with its vector constants."""
    trail = set() if trail is None else trail
    rates = [] if rates is None else rates
    passed: set[Value] = set()
    inner, own = peel_while(view, leaf, lambda step: not _is_scalar(view, step.operand), passed)
    inner = strip(view, inner, passed) if own else inner
    part = op_of(view, inner)
    if part is None or part.kind != "part":
        return _linear(view, leaf, trail, rates, vectors_only=True)
    whole = strip(view, part.inputs[0], passed)
    found = _linear(view, whole, passed, rates) if not isinstance(whole, (Op, int, float)) and whole else None
    if found is None:
        return None
    linear, product, source = found
    trail |= passed | {leaf, inner, *part.via}
    rows = (part.attrs["start"], part.attrs["stop"])
    return Linear(linear.weight, linear.transposed, (*linear.steps, *own), rows), product, source


def _linear(
    view: View, output: Value, trail: set[Value], rates: list[float], *, vectors_only: bool = False
) -> tuple[Linear, Value, Operand] | None:
    """The product above `output`, with the constants applied to it on the way; what it reads comes last."""

    def accept(step: Step) -> bool:
        return not vectors_only or not _is_scalar(view, step.operand)

    passed: set[Value] = set()
    operand: Operand = output
    steps: list[Step] = []
    while True:
        operand, peeled = peel_while(view, operand, accept, passed)
        steps[:0] = peeled
        inner = (
            strip(view, operand, passed)
            if not vectors_only or peeled
            else pass_reshapes(view, operand, passed)
        )
        op = op_of(view, inner)
        if op is None or isinstance(inner, Op):
            return None
        if op.kind != "dropout":
            break
        rates += [op.attrs["p"]] if op.attrs["active"] else []
        passed.add(inner)
        operand = op.inputs[0]
    if op.kind != "linear":
        return None
    source, weight, bias = op.inputs
    if weight is None or isinstance(weight, (Op, int, float)) or not view.is_constant(weight):
        return None
    if bias is not None and not is_per_channel(view, bias):
        return None
    own = [Step("mul", op.attrs["alpha"])] if op.attrs.get("alpha", 1.0) != 1.0 else []
    own += [Step("add", bias)] if bias is not None else []
    trail |= passed | {inner, *op.via}
    return Linear(weight, op.attrs["transposed"], (*own, *steps)), inner, source


def pass_reshapes(view: View, operand: Operand, trail: set[Value]) -> Operand:
    """Walk up through reshapes only, so that a cast beside the activation stays part of its region."""
    op = op_of(view, operand)
    while op is not None and op.kind == "pass":
        trail.add(operand)
        operand = op.inputs[0]
        op = op_of(view, operand)
    return operand


def _is_scalar(view: View, operand: Operand) -> bool:
    if isinstance(operand, (int, float)):
        return True
    shape = view.shape(operand)
    return shape is not None and all(size == 1 for size in shape)


def _almost(view: View, firsts: list[_First], foreign: list[Operand]) -> str | None:
    """Why a region that reaches products and something else is no FFN's; None if it is nothing like one."""
    named = [each for each in foreign if not isinstance(each, (Op, int, float)) and each is not None]
    if not firsts or not named:
        return None
    op = view.op(named[0])
    kind = op.kind if op else "a graph input"
    if kind in ("scaled_dot_product_attention", "softmax", "Softmax"):
        return None
    return f"between the first product and down_proj stands {kind} ({view.node_name(named[0])})"


def _products_behind(view: View, foreign: list[Operand]) -> list[Value]:
    """Products that an operator reads which is not elementwise, or not known to be."""
    read = [each for operand in foreign if (op := op_of(view, operand)) is not None for each in op.inputs]
    values = [each for each in read if not isinstance(each, (Op, int, float)) and each is not None]
    return [each for each in values if not view.is_constant(each) and _first(view, each) is not None]


def _objection(view: View, firsts: list[_First], constants: list[Value]) -> str | None:
    if not 1 <= len(firsts) <= 2:
        return f"the activation region reads {len(firsts)} products instead of one or two"
    if any(first.source != firsts[0].source for first in firsts):
        names = [view.node_name(first.source) for first in firsts]
        return f"gate and up read different values ({names[0]} and {names[1]})"
    for each in constants:
        if not _is_scalar(view, each):
            return f"the activation has a constant per channel ({view.node_name(each)})"
        if view.is_parameter(each):
            return f"the activation has a learned parameter ({view.node_name(each)})"
    return None


def _order(
    view: View, output: Value, firsts: list[_First]
) -> tuple[_First, _First | None, Activation] | None:
    """Tell gate from up by what the region computes, and name its activation."""

    def compute(*arguments: torch.Tensor) -> torch.Tensor:
        known = {first.leaf: each for first, each in zip(firsts, arguments, strict=True)}
        return evaluate(view, output, known, torch.float64).expand(GATE_PROBES.shape)

    if len(firsts) == 1:
        values = compute(GATE_PROBES)
        gate, up, name = firsts[0], None, name_of(values)
    else:
        index = role_of(compute)
        if index is None:
            return None
        gate, up = firsts[1 - index], firsts[index]
        arguments = (GATE_PROBES, UP_PROBES) if index == 1 else (UP_PROBES, GATE_PROBES)
        ones = torch.ones_like(GATE_PROBES)
        name = name_of(compute(*((GATE_PROBES, ones) if index == 1 else (ones, GATE_PROBES))))
        values = compute(*arguments)
    print_ = tuple(float(each) for each in values)
    return gate, up, Activation(name, output, gate.leaf, up.leaf if up else None, print_)
