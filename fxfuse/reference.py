"""What a block computes, from its meaning alone: the float64 judge that no runtime's rounding enters.

branch(x) = D act(G n(x) + b) * (U n(x) + c) + d        n = norm with the block's own gain and eps

With `rounded`, what a quantised product reads is rounded to 8 bits first where a runtime may do so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from fxfuse.bands import product
from fxfuse.passes.elementwise import constant, evaluate
from fxfuse.passes.quantised.formulas import round_rows
from fxfuse.passes.quantised.groups import Product, QuantisedGroup
from fxfuse.passes.quantised.objections import rounding
from fxfuse.passes.records import Block, Linear, Norm, Step
from fxfuse.passes.view import View
from fxfuse.passes.weights import Wide

__all__ = ["activated", "branch", "parallel", "stacked", "unit_norm", "wide"]


@torch.no_grad()
def parallel(
    view: View, blocks: Sequence[Block], x: torch.Tensor, dtype: torch.dtype, *, rounded: bool = False
) -> torch.Tensor:
    """The sum of the blocks' branches on the same x [..., hidden], all computed in `dtype`."""
    total = torch.zeros(x.shape, dtype=dtype, device=x.device)
    for block in blocks:
        total = total + branch(view, block, x, dtype, rounded=rounded)
    return total


@torch.no_grad()
def branch(
    view: View, block: Block, x: torch.Tensor, dtype: torch.dtype, *, rounded: bool = False
) -> torch.Tensor:
    """FFN(norm(x)) of one block, x [..., hidden]; a 16-bit x is normalised in float32, as models do."""
    hidden = _norm(view, block.norm, x.to(dtype))
    known = {block.ffn.activation.gate: _linear(view, block.ffn.gate, hidden, rounded)}
    if block.ffn.up is not None:
        known[block.ffn.activation.up] = _linear(view, block.ffn.up, hidden, rounded)
    inner = evaluate(view, block.ffn.activation.output, known, dtype)
    return _linear(view, block.ffn.down, inner, rounded)


@torch.no_grad()
def wide(
    view: View,
    blocks: Sequence[Block],
    group: QuantisedGroup,
    x: torch.Tensor,
    dtype: torch.dtype,
    *,
    rounded: bool = False,
) -> torch.Tensor:
    """The wide FFN `group` of `blocks` whose gate and up were quantised again: they read the unit norm."""
    first = blocks[0]
    hidden = _norm(view, replace(first.norm, gain=()), x.to(dtype))
    known = {first.ffn.activation.gate: _product(view, first.ffn.gate, group.gate, hidden, rounded)}
    if group.up is not None and first.ffn.up is not None:
        known[first.ffn.activation.up] = _product(view, first.ffn.up, group.up, hidden, rounded)
    inner = evaluate(view, first.ffn.activation.output, known, dtype)
    parts = torch.split(inner, [block.intermediate_size for block in blocks], -1)
    downs = [_linear(view, each.ffn.down, part, rounded) for each, part in zip(blocks, parts, strict=True)]
    return torch.stack(downs).sum(0)


@torch.no_grad()
def stacked(view: View, first: Block, weights: Wide, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What wide weights of any origin compute of x [..., hidden], in `dtype`; `first` lends norm and act."""
    weights = weights.map(lambda tensor: tensor.to(x.device, dtype))
    inner = activated(view, first, weights, unit_norm(first.norm, x.to(dtype)))
    return _biased(inner, weights.down, weights.down_bias)


def unit_norm(norm: Norm, x: torch.Tensor) -> torch.Tensor:
    """The norm of x [..., hidden] without its gain; a 16-bit x is normalised in float32, as models do."""
    wide = x.float() if x.element_size() < 4 else x
    if norm.kind == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    return (unit * norm.scale).to(x.dtype)


def activated(view: View, first: Block, weights: Wide, unit: torch.Tensor) -> torch.Tensor:
    """What the down projection reads, [..., width], of a norm without gain, in its type."""
    known = {first.ffn.activation.gate: _biased(unit, weights.gate, weights.gate_bias)}
    if weights.up is not None:
        known[first.ffn.activation.up] = _biased(unit, weights.up, weights.up_bias)
    return evaluate(view, first.ffn.activation.output, known, unit.dtype)


def _biased(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y = _times(x, weight)
    return y if bias is None else y + bias


def _product(view: View, linear: Linear, product: Product, x: torch.Tensor, rounded: bool) -> torch.Tensor:
    y = F.linear(_read(view, linear, x, rounded), product.matrix().to(x.device, x.dtype))
    for kind, vector in product.steps:
        vector = vector.to(y.device, y.dtype)
        y = y + vector if kind == "add" else y * vector if kind == "mul" else y / vector
    return y


def _read(view: View, linear: Linear, x: torch.Tensor, rounded: bool) -> torch.Tensor:
    block = rounding(view, linear) if rounded else None
    return x if block is None else round_rows(x, None if isinstance(block, str) else block)


def _norm(view: View, norm: Norm, x: torch.Tensor) -> torch.Tensor:
    return _apply(view, norm.gain, unit_norm(norm, x), None)


def _linear(view: View, linear: Linear, x: torch.Tensor, rounded: bool) -> torch.Tensor:
    weight = constant(view, linear.weight, None)
    y = product(_read(view, linear, x, rounded), weight.T if linear.transposed else weight)
    y = _apply(view, linear.steps, y, linear.rows)
    if linear.rows is not None and y.shape[-1] != linear.rows[1] - linear.rows[0]:
        y = y[..., linear.rows[0] : linear.rows[1]]
    return y


def _times(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product of x and W transposed, summed in float32 at least."""
    if x.dtype == torch.float16 and x.device.type == "cpu":
        # torch is a hundred times slower at float16 matrices that lie transposed.
        return F.linear(x.float(), weight.float()).to(x.dtype)
    return F.linear(x, weight)


def _apply(view: View, steps: Sequence[Step], y: torch.Tensor, rows: tuple[int, int] | None) -> torch.Tensor:
    for step in steps:
        value = constant(view, step.operand).to(y.device, y.dtype)
        if rows is not None and value.numel() not in (1, y.shape[-1]):
            y = y[..., rows[0] : rows[1]]
        y = y + value if step.kind == "add" else y * value if step.kind == "mul" else y / value
    return y
