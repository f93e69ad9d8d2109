"""The algebra of a wide FFN: fold, stack, sum. One implementation for both kinds of graph.

With n(x) the unit-gain norm, block i computes

    D_i act(G_i (g_i * n(x) + c_i) + b_i) ...    =    D_i act(G_i diag(g_i) n(x) + (G_i c_i + b_i)) ...

so gain g and norm bias c go into gate and up; multipliers and biases after a product go into its rows. FFNs
that read the same n(x) are then one FFN, exactly (FFN Fusion, arXiv 2503.18908, Theorem 3.1): gate and up
stacked by rows, down by columns, down biases summed. Folding is done in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxfuse.passes.elementwise import constant
from fxfuse.passes.folding import Fold, write
from fxfuse.passes.records import Block, Linear, Step
from fxfuse.passes.view import View
from fxfuse.passes.wide import Weights, Wide

__all__ = ["affine", "down_bias", "refill"]

_SLICE = 1 << 18  # elements multiplied at a time: bounds the float64 copy, and keeps it in a cache


@torch.no_grad()
def refill(view: View, blocks: Sequence[Block], weights: Weights) -> None:
    """Write the wide weights of `blocks` into the tensors of `weights`, in place."""
    parts = [weights] if isinstance(weights, Wide) else weights
    stop = 0
    for part in parts:
        start, stop = stop, stop + len(part.gate)
        _refill_part(view, _overlaps(blocks, start, stop), part)
    bias = parts[0].down_bias
    if bias is not None:
        bias.copy_(torch.stack([down_bias(view, block) for block in blocks]).sum(0))


def _overlaps(blocks: Sequence[Block], start: int, stop: int) -> list[tuple[Block, slice, slice]]:
    """The blocks with channels from `start` to `stop`: which of their own, and where after `start`."""
    found, end = [], 0
    for block in blocks:
        begin, end = end, end + block.intermediate_size
        first, last = max(begin, start), min(end, stop)
        if first < last:
            found.append((block, slice(first - begin, last - begin), slice(first - start, last - start)))
    return found


def _refill_part(view: View, pieces: Sequence[tuple[Block, slice, slice]], part: Wide) -> None:
    folds = [
        _fold_first(view, b.ffn.gate, b.norm.gain, own, part.gate, part.gate_bias, at)
        for b, own, at in pieces
    ]
    if part.up is not None:
        # One packed matrix is written band by band; two are written one after the other.
        if part.up.untyped_storage().data_ptr() != part.gate.untyped_storage().data_ptr():
            write(folds)
            folds = []
        ups = [(b.ffn.up, b.norm.gain, own, at) for b, own, at in pieces if b.ffn.up is not None]
        folds += [_fold_first(view, up, gain, own, part.up, part.up_bias, at) for up, gain, own, at in ups]
    write(folds)
    write([_fold_down(view, block.ffn.down, own, part.down[:, at]) for block, own, at in pieces])


def down_bias(view: View, block: Block) -> torch.Tensor:
    """What the block's last product adds, [hidden] in float64: its share of the wide FFN's down bias."""
    down = block.ffn.down
    return affine(view, down.steps, block.hidden_size, torch.device("cpu"), down.rows)[1]


def _fold_first(
    view: View,
    linear: Linear,
    gain: tuple[Step, ...],
    own: slice,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    rows: slice,
) -> Fold:
    """Of out[rows] = diag(post) W[own] diag(g); both biases go into `bias[rows]` now."""
    weight = _matrix(view, linear)[own]
    columns, shift = affine(view, gain, weight.shape[1], weight.device)
    pair = affine(view, linear.steps, _packed_rows(view, linear), weight.device, linear.rows)
    scale, offset = (each[own] for each in pair)
    if bias is not None:
        moved = _product(weight, shift) if bool(shift.any()) else torch.zeros_like(offset)
        bias[rows] = (scale * moved + offset).to(bias.dtype)
    return Fold(weight, scale, columns, out[rows])


def _product(weight: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """The product with a vector in float64, a part of the weight at a time."""
    if weight.stride(0) < weight.stride(1):
        step = max(1, _SLICE // max(1, weight.shape[0]))
        pairs = zip(torch.split(weight, step, 1), torch.split(vector, step), strict=True)
        return sum((part.double() @ each for part, each in pairs), torch.zeros_like(weight[:, 0]).double())
    step = max(1, _SLICE // max(1, weight.shape[1]))
    return torch.cat([part.double() @ vector for part in torch.split(weight, step)])


def _fold_down(view: View, linear: Linear, own: slice, out: torch.Tensor) -> Fold:
    """Of out = diag(post) W[:, own]; the bias is `down_bias`'s matter."""
    weight = _matrix(view, linear)[:, own]
    scale, _ = affine(view, linear.steps, weight.shape[0], weight.device, linear.rows)
    ones = torch.ones(weight.shape[1], dtype=torch.float64, device=weight.device)
    return Fold(weight, scale, ones, out)


def _matrix(view: View, linear: Linear) -> torch.Tensor:
    """The product's weight as [out, in], in its stored type."""
    weight = constant(view, linear.weight, None)
    weight = weight.T if linear.transposed else weight
    return weight if linear.rows is None else weight[linear.rows[0] : linear.rows[1]]


def _packed_rows(view: View, linear: Linear) -> int:
    shape = view.shape(linear.weight)
    assert shape is not None
    return int(shape[1 if linear.transposed else 0] or 0)


def affine(
    view: View,
    steps: Sequence[Step],
    size: int,
    device: torch.device,
    part: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`steps` as y -> scale * y + offset, each [size] (its part where one is given) in float64."""
    scale = torch.ones(size, dtype=torch.float64, device=device)
    offset = torch.zeros(size, dtype=torch.float64, device=device)
    for step in steps:
        value = constant(view, step.operand).to(device).reshape(-1)
        if part is not None and value.numel() not in (1, size):
            value = _spread(value, size, part)
        if step.kind == "add":
            offset = offset + value
        else:
            factor = value if step.kind == "mul" else value.reciprocal()
            scale, offset = scale * factor, offset * factor
    return (scale, offset) if part is None else (scale[part[0] : part[1]], offset[part[0] : part[1]])


def _spread(value: torch.Tensor, size: int, part: tuple[int, int]) -> torch.Tensor:
    """A constant applied to one part of a packed product, placed where that part is."""
    whole = torch.zeros(size, dtype=value.dtype, device=value.device)
    whole[part[0] : part[1]] = value
    return whole
