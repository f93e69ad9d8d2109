"""The algebra of a wide FFN: fold, stack, sum. One implementation for both kinds of graph.

With n(x) the unit-gain norm, block i computes

    D_i act(G_i (g_i * n(x) + c_i) + b_i) ...    =    D_i act(G_i diag(g_i) n(x) + (G_i c_i + b_i)) ...

so gain g and norm bias c go into gate and up; multipliers and biases after a product go into its rows. FFNs
that read the same n(x) are then one FFN, exactly (FFN Fusion, arXiv 2503.18908, Theorem 3.1): gate and up
stacked by rows, down by columns, down biases summed. Folding is done in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch

from fxfuse.passes.elementwise import constant
from fxfuse.passes.folding import Fold, write
from fxfuse.passes.records import Block, Linear, Step, Value
from fxfuse.passes.view import Op, View

__all__ = ["Wide", "affine", "down_bias", "typed", "widen", "refill", "sources", "unread"]

_SLICE = (
    1 << 18
)  # elements multiplied at a time: bounds the float64 copy, and keeps it in a processor's cache


@dataclass
class Wide:
    """The weights of one wide FFN; W is the sum of the blocks' intermediate sizes.

    gate, up: [W, hidden]; down: [hidden, W]; biases [W] and [hidden], None where no block needs one.
    """

    gate: torch.Tensor
    up: torch.Tensor | None
    down: torch.Tensor
    gate_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors there are, by field name."""
        pairs = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: tensor for name, tensor in pairs if tensor is not None}

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Wide:
        """The same with `change` of every tensor there is."""
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})


def widen(view: View, blocks: Sequence[Block], allocate: Callable[..., torch.Tensor] = torch.empty) -> Wide:
    """The wide FFN of `blocks`, in the type and on the device of their weights.

    `allocate(rows, columns, dtype=..., device=...)` gives the memory of a matrix, laid out in any way.
    """
    first = constant(view, blocks[0].ffn.down.weight, None)
    like: dict[str, Any] = {"dtype": first.dtype, "device": first.device}
    hidden, width = blocks[0].hidden_size, sum(block.intermediate_size for block in blocks)
    gated = blocks[0].gated
    biased = {role: any(_needs_bias(block, role) for block in blocks) for role in ("gate", "up", "down")}
    wide = Wide(
        gate=allocate(width, hidden, **like),
        up=allocate(width, hidden, **like) if gated else None,
        down=allocate(hidden, width, **like),
        gate_bias=torch.zeros(width, **like) if biased["gate"] else None,
        up_bias=torch.zeros(width, **like) if gated and biased["up"] else None,
        down_bias=torch.zeros(hidden, **like) if biased["down"] else None,
    )
    refill(view, blocks, wide)
    return wide


@torch.no_grad()
def typed(
    view: View, blocks: Sequence[Block], wide: Wide, allocate: Callable[..., torch.Tensor] = torch.empty
) -> Wide:
    """Wide weights of any origin, rounded to the type and brought to the device of the blocks' own."""
    first = constant(view, blocks[0].ffn.down.weight, None)
    like: dict[str, Any] = {"dtype": first.dtype, "device": first.device}

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        return allocate(*tensor.shape, **like).copy_(tensor) if tensor.dim() == 2 else tensor.to(**like)

    return wide.map(placed)


@torch.no_grad()
def refill(view: View, blocks: Sequence[Block], wide: Wide) -> None:
    """Write the wide weights of `blocks` into the tensors of `wide`, in place."""
    ends = list(accumulate(block.intermediate_size for block in blocks))
    places = [slice(end - block.intermediate_size, end) for end, block in zip(ends, blocks, strict=True)]
    pairs = list(zip(blocks, places, strict=True))
    write([_fold_first(view, b.ffn.gate, b.norm.gain, wide.gate, wide.gate_bias, at) for b, at in pairs])
    ups = [(block.ffn.up, block.norm.gain, at) for block, at in pairs if block.ffn.up is not None]
    if wide.up is not None:
        write([_fold_first(view, up, gain, wide.up, wide.up_bias, at) for up, gain, at in ups])
    write([_fold_down(view, block.ffn.down, wide.down[:, at]) for block, at in pairs])
    if wide.down_bias is not None:
        wide.down_bias.copy_(torch.stack([down_bias(view, block) for block in blocks]).sum(0))


def sources(view: View, blocks: Sequence[Block]) -> list[Value]:
    """Every stored tensor that the wide weights of `blocks` are computed from."""
    found: dict[Value, None] = {}
    stack: list[object] = []
    for block in blocks:
        linears = [each for each in (block.ffn.gate, block.ffn.up, block.ffn.down) if each is not None]
        stack += [linear.weight for linear in linears]
        stack += [step.operand for linear in linears for step in linear.steps]
        stack += [step.operand for step in block.norm.gain]
    while stack:
        value = stack.pop()
        if value is None or isinstance(value, (int, float)):
            continue
        op = value if isinstance(value, Op) else view.op(value)
        if op is None:
            found[value] = None
        else:
            stack.extend(op.inputs)
    return list(found)


def unread(view: View, groups: Sequence[Sequence[Block]], stored: Iterable[Value]) -> list[Value]:
    """Those `stored` tensors that nothing in the groups reads, not even by way of another constant."""
    blocks = [block for group in groups for block in group]
    used = set(sources(view, blocks))
    inside = {value for block in blocks for value in (*block.interior, block.branch, block.out)}
    return [
        value
        for value in stored
        if value not in used
        and not any(each in inside or view.is_constant(each) for each in view.readers(value))
    ]


def down_bias(view: View, block: Block) -> torch.Tensor:
    """What the block's last product adds, [hidden] in float64: its share of the wide FFN's down bias."""
    down = block.ffn.down
    return affine(view, down.steps, block.hidden_size, torch.device("cpu"), down.rows)[1]


def _needs_bias(block: Block, role: str) -> bool:
    linear = getattr(block.ffn, role)
    if linear is None:
        return False
    steps = linear.steps + (block.norm.gain if role != "down" else ())
    return any(step.kind == "add" for step in steps)


def _fold_first(
    view: View,
    linear: Linear,
    gain: tuple[Step, ...],
    out: torch.Tensor,
    bias: torch.Tensor | None,
    rows: slice,
) -> Fold:
    """Of out[rows] = diag(post) W diag(g); the norm's bias and the product's go into `bias[rows]` now."""
    weight = _matrix(view, linear)
    columns, shift = affine(view, gain, weight.shape[1], weight.device)
    scale, offset = affine(view, linear.steps, _packed_rows(view, linear), weight.device, linear.rows)
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


def _fold_down(view: View, linear: Linear, out: torch.Tensor) -> Fold:
    """Of out = diag(post) W; the bias is `down_bias`'s matter."""
    weight = _matrix(view, linear)
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
