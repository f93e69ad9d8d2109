"""Sums of blocks' branches on one stream, kept while they are small: groups begin with the same blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fxfuse.passes.records import Block

__all__ = ["Sums"]

_ROOM = 1 << 26  # bytes of sums that are kept

Branch = Callable[[Block, torch.Tensor, int], torch.Tensor]


class Sums:
    """Adds `branch(block, x, sample)` of consecutive blocks on the stream before the first, in float64."""

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        self._kept: dict[tuple[int, tuple[str, ...]], torch.Tensor] = {}
        self._room = _ROOM

    def of(self, blocks: Sequence[Block], x: torch.Tensor, sample: int) -> torch.Tensor:
        """The sum over `blocks`, not to be changed; `x` is the stream before the first in this sample."""
        names = tuple(block.name for block in blocks)
        start = next((size for size in range(len(names), 0, -1) if (sample, names[:size]) in self._kept), 0)
        total = (
            self._kept[sample, names[:start]]
            if start
            else torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        )
        for size, block in enumerate(blocks[start:], start + 1):
            total = total + self._branch(block, x, sample).double()
            cost = total.numel() * total.element_size()
            if cost <= self._room:
                self._room -= cost
                self._kept[sample, names[:size]] = total
        return total
