r"""RMSNorm and LayerNorm, as one operator or spelled out.

    rms:    y = x * r(mean(x^2))                     r(m) = c / sqrt(m + eps)
    layer:  y = z * r(mean(z^2)),  z = x - mean(x)

followed by constants (gain, gain + 1, bias) in any order, with casts anywhere. r is recognised by what it
computes: 1 / r(m)^2 is a straight line in m. So rsqrt(m + eps), 1 / sqrt(m + eps), (m + eps)^-0.5,
x / sqrt(m + eps), x / |x| * sqrt(n) and a variance taken as mean(x^2) - mean(x)^2 are one spelling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxfuse.passes.elementwise import constant, evaluate, region
from fxfuse.passes.recipes import Memo, recipe
from fxfuse.passes.records import Norm, Step, Value
from fxfuse.passes.spellings.affine import is_per_channel, peel_while
from fxfuse.passes.spellings.means import MEANS, as_rows, centred, covered, is_mean, reads
from fxfuse.passes.view import Op, Operand, View, is_constant, op_of, strip

__all__ = ["match_norm"]

_LINES: Memo[tuple[float, float] | None] = Memo()
_OPERATORS = {"rms_norm": "rms", "layer_norm": "layer"}
_PROBES = torch.tensor([0.0, 1.0, 1e-6, 1e-3, 7.0, 1e4], dtype=torch.float64)


def match_norm(view: View, output: Value, trail: set[Value]) -> Norm | None:
    """The norm that computes `output`, or None; `trail` collects the values inside it."""
    passed: set[Value] = set()
    core, gain = peel_while(view, output, lambda _: True, passed)
    unit = strip(view, core, passed)
    op = op_of(view, unit)
    if op is None:
        return None
    found = _operator(view, op, unit, core, output, gain, passed) if op.kind in _OPERATORS else None
    if found is None:
        found = _spelled_out(view, op, core, output, gain, passed)
    if found is None:
        return None
    if not isinstance(unit, Op):
        passed.add(unit)
    trail |= passed | set(op.via)
    return found


def _operator(
    view: View,
    op: Op,
    unit: Operand,
    core: Operand,
    output: Value,
    steps: tuple[Step, ...],
    trail: set[Value],
) -> Norm | None:
    eps = op.attrs["eps"]
    if isinstance(unit, Op) or isinstance(core, Op) or not is_constant(view, eps):
        return None
    kind, source, constants = _OPERATORS[op.kind], op.inputs[0], op.inputs[1:]
    if not all(each is None or is_per_channel(view, each) for each in constants):
        return None
    inner: set[Value] = set()
    if kind == "rms" and centred(view, source, inner)[0] == "layer":
        kind, source = centred(view, source, trail)
    own: list[Step] = []
    if constants and constants[0] is not None:
        own.append(Step("mul", constants[0]))
    if len(constants) > 1 and constants[1] is not None:
        own.append(Step("add", constants[1]))
    return Norm(
        kind=kind,
        source=source,
        output=output,
        unit=None if own else core,
        operator=unit,
        gain=(*own, *steps),
        eps=float(constant(view, eps)),
    )


def _spelled_out(
    view: View, op: Op, core: Operand, output: Value, gain: tuple[Step, ...], trail: set[Value]
) -> Norm | None:
    """A norm as x * r, r * x or x / s, with r a function of the mean square of x."""
    if op.kind not in ("mul", "div"):
        return None
    pairs = [op.inputs, op.inputs[::-1]] if op.kind == "mul" else [op.inputs]
    for value, factor in pairs:
        inner: set[Value] = set()
        scale = _row_scale(view, factor, value, inverse=op.kind == "div", trail=inner)
        if scale is None:
            continue
        trail |= inner
        unit = None if isinstance(core, Op) else core
        return Norm(scale.kind, scale.source, output, unit, None, gain, scale.eps, scale.scale)
    return None


def _row_scale(
    view: View, factor: Operand, value: Operand, *, inverse: bool, trail: set[Value]
) -> _Scale | None:
    """What `factor` says of the norm when it normalises `value`; None when it does not."""
    if isinstance(factor, (int, float)) or factor is None:
        return None
    inside = region(view, factor, lambda each: is_mean(view, each), rowwise=True, whole=True)
    if not 1 <= len(inside.leaves) <= 2 or inside.foreign or inside.dropout:
        return None
    means = _means_of(view, inside.leaves, trail)
    line = _straight_line(view, factor, means, inverse) if means is not None else None
    if means is None or line is None:
        return None
    trail |= inside.interior | covered(view, inside.leaves)
    kind, source = centred(view, value, trail)
    same = (kind, source) == centred(view, means.squared, trail)
    if means.average is not None:
        same = kind == "layer" and strip(view, means.squared) == source
    return _Scale(*line, kind, source) if same else None


@dataclass(frozen=True)
class _Scale:
    """scale / sqrt(m + eps), with m the mean square of `source`, or its variance."""

    eps: float
    scale: float
    kind: str
    source: Operand


@dataclass(frozen=True)
class _Means:
    """The means that a factor is computed from: that of `squared`'s square, and that of `squared` itself."""

    squared: Operand
    square: Value | Op
    average: Value | Op | None


def _means_of(view: View, leaves: list[Value | Op], trail: set[Value]) -> _Means | None:
    """One mean of squares; or mean(x^2) and mean(x), which give the variance as their difference."""
    for square, *others in (leaves, leaves[::-1]):
        op = op_of(view, square)
        passed: set[Value] = set()
        squared = _squared(view, op.inputs[0], passed) if op is not None else None
        average = op_of(view, others[0]) if others else None
        if squared is None or (average is not None and not reads(view, average, squared, passed)):
            continue
        trail |= passed
        return _Means(squared, square, others[0] if others else None)
    return None


def _squared(view: View, operand: Operand, trail: set[Value]) -> Operand:
    """s, where `operand` is s * s, s^2 or square(s)."""
    operand = strip(view, operand, trail)
    op = op_of(view, operand)
    if op is None:
        return None
    if not isinstance(operand, Op):
        trail.add(operand)
    if op.kind == "square":
        return op.inputs[0]
    if op.kind == "pow" and is_constant(view, op.inputs[1]):
        exponent = evaluate(view, op.inputs[1], {}, torch.float64)
        return op.inputs[0] if exponent.numel() == 1 and float(exponent) == 2.0 else None
    if op.kind == "mul" and strip(view, op.inputs[0]) == strip(view, op.inputs[1]):
        strip(view, op.inputs[1], trail)
        return op.inputs[0]
    return None


def _straight_line(view: View, factor: Operand, means: _Means, inverse: bool) -> tuple[float, float] | None:
    """Read eps and c off r(m) = c / sqrt(m + eps), if `factor` is one."""
    average = _PROBES.sign() * MEANS if means.average is not None else torch.zeros_like(_PROBES)
    known = {means.square: as_rows(view, means.square, _PROBES + average.square())}
    if means.average is not None:
        known[means.average] = as_rows(view, means.average, average)
    key = recipe(view, factor, list(known))
    return _LINES.get(key and (key, inverse), lambda: _line(view, factor, known, inverse))


def _line(
    view: View, factor: Operand, known: dict[Value | Op, torch.Tensor], inverse: bool
) -> tuple[float, float] | None:
    try:
        r = evaluate(view, factor, known, torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return None
    if r.numel() != len(_PROBES) or r.shape[-2:] != (len(_PROBES), 1) or bool((r < 0).any()):
        return None
    line = (r.square() if inverse else r.square().reciprocal()).reshape(-1)
    slope = float(line[-1] - line[0]) / float(_PROBES[-1])
    if not torch.isfinite(line).all() or not 1e-12 < slope < 1e12:
        return None
    line = line / slope
    straight = torch.allclose(line, line[0] + _PROBES, rtol=1e-6, atol=1e-12)
    return (float(line[0]), _rounded(slope**-0.5)) if straight else None


def _rounded(scale: float) -> float:
    """1 where the scale differs from it by rounding alone."""
    return 1.0 if abs(scale - 1.0) < 1e-6 else scale
