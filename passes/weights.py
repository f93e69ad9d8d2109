"""The wide FFN of some blocks: its memory, its type, and the stored tensors that it is computed from.

`fxfuse.passes.filling` has the algebra by which its weights are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from fxfuse.passes.elementwise import constant
from fxfuse.passes.filling import affine, down_bias, refill
from fxfuse.passes.records import Block, Value
from fxfuse.passes.view import Op, View
from fxfuse.passes.wide import Weights, Wide

__all__ = [
    "Weights", "Wide", "affine", "biased_roles", "down_bias", "kind", "refill", "sources", "typed", "unread",
    "widen",
]  # fmt: skip


def widen(view: View, blocks: Sequence[Block], allocate: Callable[..., torch.Tensor] = torch.empty) -> Wide:
    """The wide FFN of `blocks`, in the type and on the device of their weights.

    `allocate(rows, columns, dtype=..., device=...)` gives the memory of a matrix, laid out in any way.
    """
    like, hidden, width = kind(view, blocks), blocks[0].hidden_size, sum(b.intermediate_size for b in blocks)
    gated, biased = blocks[0].gated, biased_roles(view, blocks)
    wide = Wide(
        gate=allocate(width, hidden, **like),
        up=allocate(width, hidden, **like) if gated else None,
        down=allocate(hidden, width, **like),
        gate_bias=torch.zeros(width, **like) if "gate" in biased else None,
        up_bias=torch.zeros(width, **like) if "up" in biased else None,
        down_bias=torch.zeros(hidden, **like) if "down" in biased else None,
    )
    refill(view, blocks, wide)
    return wide


def kind(view: View, blocks: Sequence[Block]) -> dict[str, Any]:
    """The type and the device of the blocks' weights."""
    first = constant(view, blocks[0].ffn.down.weight, None)
    return {"dtype": first.dtype, "device": first.device}


def biased_roles(view: View, blocks: Sequence[Block]) -> set[str]:
    """The products of the wide FFN of `blocks` that need a bias."""
    return {role for role in ("gate", "up", "down") if any(_needs_bias(block, role) for block in blocks)}


@torch.no_grad()
def typed(
    view: View, blocks: Sequence[Block], wide: Wide, allocate: Callable[..., torch.Tensor] = torch.empty
) -> Wide:
    """Wide weights of any origin, rounded to the type and brought to the device of the blocks' own."""
    like = kind(view, blocks)

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        return allocate(*tensor.shape, **like).copy_(tensor) if tensor.dim() == 2 else tensor.to(**like)

    return wide.map(placed)


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


def _needs_bias(block: Block, role: str) -> bool:
    linear = getattr(block.ffn, role)
    if linear is None:
        return False
    steps = linear.steps + (block.norm.gain if role != "down" else ())
    return any(step.kind == "add" for step in steps)
