r"""An FFN, read upwards from its last product.

    h ---> gate ---> act ---> mul ---> down ---> constants
      \--> up   --------------^

Gated with two products, with one packed product split in two, or ungated. Between the first products and
`down` stands one elementwise region; what it computes is read off at probe points, so an activation may be
one operator or twenty. Biases and multipliers on either side are steps of the `Linear` beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fxfuse.passes.elementwise import Region, evaluate, region
from fxfuse.passes.recipes import Memo, recipe
from fxfuse.passes.records import FFN, Activation, Linear, Step, Value
from fxfuse.passes.spellings.activations import ACTIVATIONS, GATE_PROBES, UP_PROBES, name_of, role_of
from fxfuse.passes.spellings.affine import peel_while
from fxfuse.passes.spellings.copies import are_copies
from fxfuse.passes.spellings.products import (
    FirstProduct,
    is_first,
    is_multiplier,
    is_scalar,
    pass_reshapes,
    read_first,
    read_linear,
)
from fxfuse.passes.view import Op, Operand, View, op_of

__all__ = ["FFNMatch", "NearlyFFN", "match_ffn"]

_Reading = tuple[int | None, str, tuple[float, ...]]
_READINGS: Memo[_Reading | None] = Memo()


@dataclass(frozen=True)
class FFNMatch:
    """An FFN that was recognised: what it reads (`source`), what it covers, and what speaks against it."""

    ffn: FFN
    source: Value
    trail: frozenset[Value]
    products: tuple[Value, Value]  # the gate's and down's
    objection: str | None
    rounded: Value | None = None  # what it computes that is quantised by a scale which the file holds


@dataclass(frozen=True)
class NearlyFFN:
    """Something that is almost an FFN: why it is none, and what its first products read."""

    reason: str
    sources: tuple[Value, ...]


def match_ffn(view: View, output: Value) -> FFNMatch | NearlyFFN | None:
    """The FFN that computes `output`; a reason where it is almost one; None where it is none."""
    trail: set[Value] = set()
    rates: list[float] = []
    down = read_linear(view, output, trail, rates)
    if down is None:
        return None
    linear, product, inner = down
    first = found = _match_inside(view, linear, product, inner, set(trail), list(rates))
    while not _is_named(found):
        # A multiplier before the product may as well come after it: what is left may have a name.
        inner, multiplier = _peel_multiplier(view, inner, trail)
        if multiplier is None:
            return first
        linear = replace(linear, steps=(multiplier, *linear.steps))
        found = _match_inside(view, linear, product, inner, set(trail), list(rates))
    return found


def _peel_multiplier(view: View, operand: Operand, trail: set[Value]) -> tuple[Operand, Step | None]:
    """Take the last multiplier by one number off `operand`."""
    taken: list[Step] = []

    def accept(step: Step) -> bool:
        wanted = not taken and is_multiplier(view, step)
        taken.extend([step] if wanted else [])
        return wanted

    return peel_while(view, operand, accept, trail)[0], next(iter(taken), None)


def _is_named(match: FFNMatch | NearlyFFN | None) -> bool:
    return isinstance(match, FFNMatch) and match.ffn.activation.name != "elementwise"


def _match_inside(
    view: View, linear: Linear, product: Value, inner: Operand, trail: set[Value], rates: list[float]
) -> FFNMatch | NearlyFFN | None:
    """The same once `down` is read, which multiplies `inner`."""
    middle = pass_reshapes(view, inner, trail)
    if isinstance(middle, Op) or middle is None or isinstance(middle, (int, float)):
        return None
    inside = region(view, middle, lambda each: is_first(view, each))
    firsts = [FirstProduct(view, leaf) for leaf in inside.leaves]
    firsts += [FirstProduct(view, each) for each in _products_behind(view, inside.foreign)]
    sources = tuple(first.source for first in firsts)
    if inside.foreign or not inside.interior:
        reason = _almost(view, firsts, inside)
        return NearlyFFN(reason, sources) if reason is not None else None
    trail |= inside.interior
    for first in firsts:
        trail |= first.trail
        rates += first.rates
        if first.source != firsts[0].source and are_copies(view, firsts[0].source, first.source, trail):
            first.source = firsts[0].source
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
    rounded = next((each for each in sorted(trail, key=str) if _has_scale(view, each)), None)
    return FFNMatch(ffn, gate.source, frozenset(trail), (gate.product, product), objection, rounded)


def _has_scale(view: View, value: Value) -> bool:
    """Whether `value` is rounded by a scale that the file holds, or is a product of such values."""
    op = view.op(value)
    return op is not None and op.kind in ("rounded", "linear") and "scale" in op.attrs


def _almost(view: View, firsts: list[FirstProduct], inside: Region) -> str | None:
    """Why a region that reaches products and something else is no FFN's; None if it is nothing like one."""
    if not firsts or not inside.foreign:
        return None
    op = op_of(view, inside.foreign[0])
    kind = op.kind if op else "a graph input"
    if kind in ("scaled_dot_product_attention", "softmax", "Softmax"):
        return None
    return f"between the first product and down_proj stands {kind} ({view.node_name(inside.places[0])})"


def _products_behind(view: View, foreign: list[Operand]) -> list[Value]:
    """Products that an operator reads which is not elementwise, or not known to be."""
    read = [each for operand in foreign if (op := op_of(view, operand)) is not None for each in op.inputs]
    values = [each for each in read if not isinstance(each, (Op, int, float)) and each is not None]
    return [each for each in values if not view.is_constant(each) and read_first(view, each) is not None]


def _objection(view: View, firsts: list[FirstProduct], constants: list[Value]) -> str | None:
    if not 1 <= len(firsts) <= 2:
        return f"the activation region reads {len(firsts)} products instead of one or two"
    if any(first.source != firsts[0].source for first in firsts):
        names = [view.node_name(first.source) for first in firsts]
        return f"gate and up read different values ({names[0]} and {names[1]})"
    for each in constants:
        if not is_scalar(view, each):
            return f"the activation has a constant per channel ({view.node_name(each)})"
        if view.is_parameter(each):
            return f"the activation has a learned parameter ({view.node_name(each)})"
    return None


def _order(
    view: View, output: Value, firsts: list[FirstProduct]
) -> tuple[FirstProduct, FirstProduct | None, Activation] | None:
    """Tell gate from up by what the region computes, and name its activation."""

    def compute(*arguments: torch.Tensor) -> torch.Tensor:
        known = {first.leaf: each for first, each in zip(firsts, arguments, strict=True)}
        return evaluate(view, output, known, torch.float64).reshape(-1).expand(GATE_PROBES.shape)

    key = recipe(view, output, [first.leaf for first in firsts])
    read = _READINGS.get(key and (key, tuple(ACTIVATIONS)), lambda: _reading(compute, len(firsts)))
    if read is None:
        return None
    index, name, values = read
    gate, up = (firsts[0], None) if index is None else (firsts[1 - index], firsts[index])
    return gate, up, Activation(name, output, gate.leaf, up.leaf if up else None, values)


def _reading(compute: Callable[..., torch.Tensor], count: int) -> _Reading | None:
    try:
        return _probed(compute, count)
    except (TypeError, ValueError, RuntimeError):
        return None  # its operators do not take one number for each channel


def _probed(compute: Callable[..., torch.Tensor], count: int) -> _Reading | None:
    """Which of `count` products is the up projection, the activation's name and its values at the probes."""
    index = None
    if count == 1:
        values = compute(GATE_PROBES)
        name = name_of(values)
    else:
        index = role_of(compute)
        if index is None:
            return None
        arguments = (GATE_PROBES, UP_PROBES) if index == 1 else (UP_PROBES, GATE_PROBES)
        ones = torch.ones_like(GATE_PROBES)
        name = name_of(compute(*((GATE_PROBES, ones) if index == 1 else (ones, GATE_PROBES))))
        values = compute(*arguments)
    return index, name, tuple(float(each) for each in values)
