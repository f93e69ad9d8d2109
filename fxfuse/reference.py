"""What a block computes, from its meaning alone: the float64 judge that no runtime's rounding enters.

branch(x) = D act(G n(x) + b) * (U n(x) + c) + d        n = norm with the block's own gain and eps
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from fxfuse.passes.elementwise import constant, evaluate
from fxfuse.passes.records import Block, Linear, Norm, Step
from fxfuse.passes.view import View

__all__ = ["branch", "parallel"]


@torch.no_grad()
def parallel(view: View, blocks: Sequence[Block], x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The sum of the blocks' branches on the same x [..., hidden], all computed in `dtype`."""
    total = torch.zeros(x.shape, dtype=dtype, device=x.device)
    for block in blocks:
        total = total + branch(view, block, x, dtype)
    return total


@torch.no_grad()
def branch(view: View, block: Block, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """FFN(norm(x)) of one block, x [..., hidden]; a 16-bit x is normalised in float32, as models do."""
    hidden = _norm(view, block.norm, x.to(dtype))
    known = {block.ffn.activation.gate: _linear(view, block.ffn.gate, hidden)}
    if block.ffn.up is not None:
        known[block.ffn.activation.up] = _linear(view, block.ffn.up, hidden)
    inner = evaluate(view, block.ffn.activation.output, known, dtype)
    return _linear(view, block.ffn.down, inner)


def _norm(view: View, norm: Norm, x: torch.Tensor) -> torch.Tensor:
    wide = x.float() if x.element_size() < 4 else x
    if norm.kind == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    return _apply(view, norm.gain, unit.to(x.dtype), None)


def _linear(view: View, linear: Linear, x: torch.Tensor) -> torch.Tensor:
    weight = constant(view, linear.weight, None).to(x.device, x.dtype)
    y = F.linear(x, weight.T if linear.transposed else weight)
    y = _apply(view, linear.steps, y, linear.rows)
    if linear.rows is not None and y.shape[-1] != linear.rows[1] - linear.rows[0]:
        y = y[..., linear.rows[0] : linear.rows[1]]
    return y


def _apply(view: View, steps: Sequence[Step], y: torch.Tensor, rows: tuple[int, int] | None) -> torch.Tensor:
    for step in steps:
        value = constant(view, step.operand).to(y.device, y.dtype)
        if rows is not None and value.numel() not in (1, y.shape[-1]):
            y = y[..., rows[0] : rows[1]]
        y = y + value if step.kind == "add" else y * value if step.kind == "mul" else y / value
    return y
