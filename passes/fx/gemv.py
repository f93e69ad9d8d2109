# mypy: ignore-errors
"""Triton kernels for one token: matrix-vector products that read each weight once, in long vectors.

The sizes of tiles are those that were fastest on an H200 at hidden sizes 1024, 2048 and 4096 (see
docs/performance.md); sums are in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["down_token", "gate_up_token"]

KINDS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}


def gate_up_token(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, eps: float, activation: str
) -> torch.Tensor:
    """act(gate @ n(x)) * (up @ n(x)) for one token; see `decode.gate_up`."""
    width, hidden = gate.shape
    inner = x.new_empty((*x.shape[:-1], width))
    rows, step, warps, stages = (4, 512, 4, 4) if hidden <= 1024 else (4, 1024, 4, 2)
    if 1024 < hidden <= 2048:
        rows, step, warps, stages = 1, 1024, 1, 2
    _gate_up[(triton.cdiv(width, rows),)](
        x, gate, up, inner, eps, width, hidden, KINDS[activation], rows, step,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return inner


def down_token(inner: torch.Tensor, weight: torch.Tensor, parts: int) -> torch.Tensor:
    """Down @ inner in float32, in parts; see `decode.down`."""
    hidden, width = weight.shape
    out = inner.new_empty((parts, *inner.shape[:-1], hidden), dtype=torch.float32)
    warps = 4 if parts > 1 else 8
    _down[(triton.cdiv(hidden, 4), parts)](
        inner, weight, out, width, hidden, 4, 512, parts, num_warps=warps, num_stages=3
    )
    return out


@triton.jit
def _activated(g, KIND: tl.constexpr):
    if KIND == 0:
        return g * tl.sigmoid(g)
    elif KIND == 1:
        return 0.5 * g * (1.0 + tl.erf(g * 0.7071067811865476))
    elif KIND == 2:
        return g * tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))
    else:
        return tl.maximum(g, 0.0)


@triton.jit
def _gate_up(
    x, gate, up, inner, eps, width, hidden,
    KIND: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keep = rows < width
    start = rows.to(tl.int64) * hidden
    of_gate = tl.zeros([ROWS, STEP], tl.float32)
    of_up = tl.zeros([ROWS, STEP], tl.float32)
    square = tl.zeros([STEP], tl.float32)
    for first in tl.range(0, hidden, STEP):
        columns = first + tl.arange(0, STEP)
        inside = columns < hidden
        both = keep[:, None] & inside[None, :]
        place = start[:, None] + columns[None, :]
        g = tl.load(gate + place, mask=both, other=0.0, eviction_policy="evict_first")
        u = tl.load(up + place, mask=both, other=0.0, eviction_policy="evict_first")
        value = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        of_gate += g.to(tl.float32) * value[None, :]
        of_up += u.to(tl.float32) * value[None, :]
        square += value * value
    scale = tl.rsqrt(tl.sum(square, 0) / hidden + eps)
    found = _activated(tl.sum(of_gate, 1) * scale, KIND) * (tl.sum(of_up, 1) * scale)
    tl.store(inner + rows, found.to(inner.dtype.element_ty), mask=keep)


@triton.jit
def _down(
    inner, weight, out, width, hidden,
    ROWS: tl.constexpr, STEP: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    keep = rows < hidden
    start = rows.to(tl.int64) * width
    each = tl.cdiv(tl.cdiv(width, STEP), PARTS) * STEP
    low = part * each
    high = tl.minimum(low + each, width)
    total = tl.zeros([ROWS, STEP], tl.float32)
    for first in tl.range(low, high, STEP):
        columns = first + tl.arange(0, STEP)
        inside = columns < high
        both = keep[:, None] & inside[None, :]
        place = start[:, None] + columns[None, :]
        w = tl.load(weight + place, mask=both, other=0.0, eviction_policy="evict_first")
        value = tl.load(inner + columns, mask=inside, other=0.0).to(tl.float32)
        total += w.to(tl.float32) * value[None, :]
    tl.store(out + part * hidden + rows, tl.sum(total, 1), mask=keep)
