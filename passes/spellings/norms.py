r"""RMSNorm and LayerNorm, as one operator or spelled out.

    rms:    y = x * r(mean(x^2))                     r(m) = 1 / sqrt(m + eps)
    layer:  y = z * r(mean(z^2)),  z = x - mean(x)

followed by constants (gain, gain + 1, bias) in any order, with casts anywhere. r is recognised by what it
computes: 1 / r(m)^2 is m + eps. So rsqrt(m + eps), 1 / sqrt(m + eps), (m + eps)^-0.5 and x / sqrt(m + eps)
are one spelling.
"""

from __future__ import annotations

import torch

from fxfuse.passes.elementwise import Region, constant, evaluate, region
from fxfuse.passes.records import Norm, Step, Value
from fxfuse.passes.spellings.affine import peel_while
from fxfuse.passes.view import Op, Operand, View, is_constant, op_of, strip

__all__ = ["match_norm"]

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
    found = _operator(view, op, unit, core, output, gain) if op.kind in _OPERATORS else None
    if found is None:
        found = _spelled_out(view, op, core, output, gain, passed)
    if found is None:
        return None
    if not isinstance(unit, Op):
        passed.add(unit)
    trail |= passed | set(op.via)
    return found


def _operator(
    view: View, op: Op, unit: Operand, core: Operand, output: Value, steps: tuple[Step, ...]
) -> Norm | None:
    eps = op.attrs["eps"]
    if isinstance(unit, Op) or isinstance(core, Op) or not is_constant(view, eps):
        return None
    source, *constants = op.inputs
    own: list[Step] = []
    if constants and constants[0] is not None:
        own.append(Step("mul", constants[0]))
    if len(constants) > 1 and constants[1] is not None:
        own.append(Step("add", constants[1]))
    return Norm(
        kind=_OPERATORS[op.kind],
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
        eps, source, kind = scale
        trail |= inner
        unit = None if isinstance(core, Op) else core
        return Norm(kind, source, output, unit, None, gain, eps)
    return None


def _row_scale(
    view: View, factor: Operand, value: Operand, *, inverse: bool, trail: set[Value]
) -> tuple[float, Operand, str] | None:
    """eps, source and kind when `factor` normalises `value`; None otherwise."""
    if isinstance(factor, (int, float)) or factor is None:
        return None
    inside = region(view, factor, lambda each: _is_mean(view, each))
    if len(inside.leaves) != 1 or inside.foreign or inside.dropout:
        return None
    mean = op_of(view, inside.leaves[0])
    squared = _squared(view, mean.inputs[0], trail) if mean else None
    eps = _straight_line(view, factor, inside, inverse)
    if squared is None or eps is None:
        return None
    trail |= inside.interior | set(inside.leaves)
    kind, source = _centred(view, value, trail)
    if (kind, source) != _centred(view, squared, trail):
        return None
    return eps, source, kind


def _is_mean(view: View, value: Value) -> bool:
    op = view.op(value)
    return op is not None and op.kind == "mean"


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


def _straight_line(view: View, factor: Operand, inside: Region, inverse: bool) -> float | None:
    """Read eps off r(m) = 1 / sqrt(m + eps), if `factor` is one."""
    try:
        r = evaluate(view, factor, {inside.leaves[0]: _PROBES}, torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return None
    line = r.square() if inverse else r.square().reciprocal()
    if line.shape != _PROBES.shape or not torch.isfinite(line).all() or bool((r < 0).any()):
        return None
    return float(line[0]) if torch.allclose(line, line[0] + _PROBES, rtol=1e-6, atol=1e-12) else None


def _centred(view: View, operand: Operand, trail: set[Value]) -> tuple[str, Operand]:
    """("layer", x) where `operand` is x - mean(x), ("rms", x) otherwise, with casts passed over."""
    value = strip(view, operand, trail)
    op = op_of(view, value)
    if op is not None and op.kind == "sub":
        mean_value = strip(view, op.inputs[1])
        mean = op_of(view, mean_value)
        is_mean = mean is not None and mean.kind == "mean"
        if mean is not None and is_mean and strip(view, mean.inputs[0]) == strip(view, op.inputs[0]):
            strip(view, op.inputs[1], trail)
            strip(view, mean.inputs[0], trail)
            trail.update(each for each in (value, mean_value) if not isinstance(each, Op))
            return "layer", strip(view, op.inputs[0], trail)
    return "rms", value
