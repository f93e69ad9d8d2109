"""What looks like a norm and is none that can be folded: x times a function of how large x is.

x * f(reduce(x^2))      but f is not 1 / sqrt(m + eps), or the reduction is no mean over the last axis
GroupNorm(x), ...       an operator that normalises otherwise
"""

from __future__ import annotations

import re

import torch

from fxfuse.passes.elementwise import evaluate, region
from fxfuse.passes.records import Value
from fxfuse.passes.spellings.affine import is_per_channel, peel_while
from fxfuse.passes.view import Op, Operand, View, is_constant, op_of, strip

__all__ = ["near_norm"]

_NORMS = re.compile(r"norm", re.IGNORECASE)
_LENGTHS = re.compile(r"vector_norm|reducel2|^norm$|^normalize$|lpnorm", re.IGNORECASE)
_SUMS = re.compile(r"reducesum|^(another )?sum$", re.IGNORECASE)
_MEANS = re.compile(r"^(another )?(mean|reducemean|var)$", re.IGNORECASE)
_PROBES = torch.tensor([1e-3, 1.0, 7.0, 1e4], dtype=torch.float64)


def near_norm(view: View, output: Operand) -> str | None:
    """Why `output`, which looks like a norm, is none that is known; None if it is nothing like one."""
    core, _ = peel_while(view, output, lambda _: True, set())
    value = strip(view, core)
    op = op_of(view, value)
    if op is None:
        return None
    if op.kind in ("rms_norm", "layer_norm"):
        return _by_gain(view, op)
    if op.kind in ("mul", "div") and len(op.inputs) == 2:
        pairs = [op.inputs, op.inputs[::-1]] if op.kind == "mul" else [op.inputs]
        reasons = (_scaled(view, one, other, inverse=op.kind == "div") for one, other in pairs)
        return next((reason for reason in reasons if reason is not None), None)
    if isinstance(value, Op) or value is None or isinstance(value, (int, float)):
        return None
    return _operator(view, value, op)


def _by_gain(view: View, op: Op) -> str | None:
    """A norm whose gain or bias cannot be folded into a weight."""
    odd = [each for each in op.inputs[1:] if each is not None and not is_per_channel(view, each)]
    if not odd or isinstance(odd[0], (Op, int, float)):
        return None
    return f"its gain or bias {view.node_name(odd[0])} is not one stored number for each channel"


def _operator(view: View, value: Value, op: Op) -> str | None:
    """An operator that normalises by its name."""
    computed = [each for each in op.inputs if not is_constant(view, each)]
    read = view.readers(value) or view.is_output(value)  # and not a second output that nobody wants
    if not _NORMS.search(op.kind) or len(computed) != 1 or not read:
        return None
    where = _axes(op)
    if _LENGTHS.search(op.kind):
        # By itself it is a length; only one that gives back x divided by it has the shape of x.
        same = view.shape(value) == view.shape(strip(view, computed[0]))
        return _by_length(view, value) if same and view.shape(value) is not None else None
    return (
        f"{op.kind} ({view.node_name(value)}) normalises {where or 'otherwise than over the last axis alone'}"
    )


def _scaled(view: View, value: Operand, factor: Operand, *, inverse: bool) -> str | None:
    """Read x times a factor, or over one, that a reduction of x gives."""
    if factor is None or isinstance(factor, (int, float)) or is_constant(view, value):
        return None
    inside = region(view, factor, lambda each: _is_reduction(view, each))
    if len(inside.leaves) != 1 or any(not is_constant(view, each) for each in inside.foreign):
        return None
    leaf = inside.leaves[0]
    op = view.op(leaf)
    if op is None or not op.inputs or not _same(view, value, op):
        return None
    if _LENGTHS.search(op.kind):
        return _by_length(view, leaf)
    if _SUMS.search(op.kind):
        return f"it divides by a sum of squares ({view.node_name(leaf)}), not by the root of their mean"
    if op.kind != "mean":
        where = _axes(op) or "otherwise than over the last axis alone"
        return f"its mean of squares ({view.node_name(leaf)}) goes {where}"
    return _wrong_function(view, factor, leaf, inverse)


def _by_length(view: View, value: Value) -> str:
    return f"it divides by a length ({view.node_name(value)}, an L2 norm), not by the root of a mean square"


def _is_reduction(view: View, value: Value) -> bool:
    op = view.op(value)
    return op is not None and any(each.search(op.kind) for each in (_MEANS, _SUMS, _LENGTHS))


def _same(view: View, value: Operand, reduction: Op) -> bool:
    """Whether a reduction works on the squares of `value`, or on a length or variance of it."""
    source = strip(view, value)
    inner = strip(view, reduction.inputs[0])
    if inner == source or _centre(view, source) == inner:
        return bool(_LENGTHS.search(reduction.kind)) or "var" in reduction.kind
    op = op_of(view, inner)
    if op is None or op.kind not in ("pow", "mul", "square"):
        return False
    squared = strip(view, op.inputs[0])
    twice = op.kind != "mul" or strip(view, op.inputs[1]) == squared
    return twice and (squared == source or squared == _centre(view, source))


def _centre(view: View, operand: Operand) -> Operand:
    """x, where `operand` is x less something: the mean may have been taken of x itself."""
    op = op_of(view, operand)
    return strip(view, op.inputs[0]) if op is not None and op.kind == "sub" else None


def _axes(op: Op) -> str | None:
    """The axes that an operator reduces, where the view kept them."""
    axes = op.attrs.get("axes")
    if axes is None:
        return None
    axes = [axes] if isinstance(axes, (int, str)) else list(axes)
    kept = "" if op.attrs.get("kept", True) else ", and drops it" if len(axes) == 1 else ", and drops them"
    return f"over {'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}{kept}"


def _wrong_function(view: View, factor: Operand, mean: Value, inverse: bool) -> str | None:
    """Why a function of the mean square is not 1 / sqrt(m + eps)."""
    try:
        r = evaluate(view, factor, {mean: _PROBES}, torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return "its factor is not computed from the mean square and single numbers alone"
    if r.shape != _PROBES.shape:
        return "its factor is not computed from the mean square and single numbers alone"
    root = r if inverse else r.reciprocal()
    eps = root - _PROBES.sqrt()
    if torch.allclose(eps, eps[0], rtol=1e-4, atol=1e-9):
        return f"its eps ({float(eps[0]):.3g}) is added after the square root, not before"
    line = root.square() - _PROBES
    if torch.allclose(line, line[0], rtol=1e-6, atol=1e-9):
        return None
    return f"at mean square 1 it divides by {float(root[1]):.6g}, which is not the root of mean square + eps"
