r"""Run a model with its residual stream changed in places: groups fused, blocks or attentions left out.

    x_a ---> x_a + sum of FFN_i(norm_i(x_a)) ---> x_b ---> ... ---> logits       a group fused
    x -----> x ---> ... ---> logits                                              an update left out

Nothing is rewritten: the changed value takes the graph's own place and the rest is computed from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fxfuse.frontends.protocol import Batch, Runnable
from fxfuse.passes.records import Block, Value
from fxfuse.passes.view import Op, root

__all__ = ["Change", "add", "branches", "changed", "fused", "in_order", "running_sums"]


@dataclass(frozen=True)
class Change:
    """The stream `out` as x + the branches of `blocks` on x; without blocks as x: all between is left out."""

    x: Value
    out: Value
    blocks: tuple[Block, ...] = ()

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Change:
        """Consecutive blocks fused."""
        return cls(blocks[0].x, blocks[-1].out, tuple(blocks))


def in_order(front: Runnable, changes: Sequence[Change]) -> list[Change]:
    """Changes as the graph meets them."""
    places = {value: place for place, value in enumerate(front.view.values())}
    return sorted(changes, key=lambda change: places[change.out])


def branches(front: Runnable, batch: Batch, blocks: Sequence[Block], x: torch.Tensor) -> list[torch.Tensor]:
    """The branch of every block on the same stream `x`, in one run where the graph has them as values."""
    if any(isinstance(block.branch, Op) for block in blocks):  # the add itself multiplies it
        return [front.run(batch, [block.out], {block.x: x})[0] - x for block in blocks]
    return front.run(batch, [block.branch for block in blocks], {block.x: x for block in blocks})


def fused(front: Runnable, batch: Batch, blocks: Sequence[Block], x: torch.Tensor) -> torch.Tensor:
    """The stream `x` and the blocks' branches on it, added up in its type."""
    *_, total = running_sums(branches(front, batch, blocks, x))
    return add(x, total)


def running_sums(parts: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The first part, the first two together and so on, in float32 or wider, as a wide product sums them."""
    total: torch.Tensor | None = None
    for part in parts:
        wide = part.to(torch.promote_types(part.dtype, torch.float32))
        total = wide if total is None else total + wide
        yield total


def add(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """The sum in the type of `x`."""
    return (x + total).to(x.dtype)


def changed(
    front: Runnable, batch: Batch, changes: Sequence[Change], x: torch.Tensor, wanted: Value
) -> torch.Tensor:
    """What `wanted` is with `changes`, in the graph's order; `x` is the stream that the first one reads."""
    for place, change in enumerate(changes):
        out = fused(front, batch, change.blocks, x) if change.blocks else x
        following = changes[place + 1].x if place + 1 < len(changes) else wanted
        x = (
            out
            if root(front.view, following) == change.out
            else _onward(front, batch, change, out, following)
        )
    return x


def _onward(front: Runnable, batch: Batch, change: Change, out: torch.Tensor, wanted: Value) -> torch.Tensor:
    return front.run(batch, [wanted], {change.out: out})[0]
