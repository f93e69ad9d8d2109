"""What a group computes by its meaning, as it stands in the model and as it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fxfuse import reference
from fxfuse.passes.quantised.groups import stack
from fxfuse.passes.quantised.objections import is_quantised, rounding
from fxfuse.passes.records import Block
from fxfuse.passes.view import View
from fxfuse.passes.weights import Wide

__all__ = ["Meaning"]


class Meaning:
    """The references that a group is judged by.

    quantised: any of its weights is; rounds: a runtime may round what its products read to 8 bits;
    requantised: |W' - W| / |W| of the gate and up weights that are quantised again, None where none is;
    done: what becomes of quantised weights, in words; recovered: corrected weights, `wide`, are written.
    """

    def __init__(self, view: View, blocks: Sequence[Block], wide: Wide | None = None) -> None:
        self.view = view
        self.blocks = blocks
        self._wide = wide
        self.recovered = wide is not None
        linears = [
            each for block in blocks for each in (block.ffn.gate, block.ffn.up, block.ffn.down) if each
        ]
        self.quantised = any(is_quantised(view, block) for block in blocks)
        self.rounds = any(rounding(view, each) is not None for each in linears)
        self._group = stack(view, blocks) if self.quantised else None
        self.requantised = self._group.error if self._group is not None else None
        self.done = str(self._group) if self._group is not None else None

    def unfused(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of the blocks' branches as the model has them, in float64."""
        return reference.parallel(self.view, self.blocks, x, torch.float64)

    def written(self, x: torch.Tensor, dtype: torch.dtype, *, rounded: bool = False) -> torch.Tensor:
        """The sum as it is written: the same, but for weights that were quantised again or recovered."""
        if self._wide is not None:
            return reference.stacked(self.view, self.blocks[0], self._wide, x, dtype)
        if self._group is not None and self.requantised is not None:
            return reference.wide(self.view, self.blocks, self._group, x, dtype, rounded=rounded)
        return reference.parallel(self.view, self.blocks, x, dtype, rounded=rounded)

    def computed(
        self, x: torch.Tensor, rows: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype
    ) -> torch.Tensor:
        """Some `rows` of `written` in `dtype`, with what products read rounded where a runtime may do so."""
        if self.rounds:
            return rows(self.written(x, dtype, rounded=True))  # all tokens may share one scale
        return self.written(rows(x), dtype)
