"""The wide FFN as a function of its weights, in float32: what is fitted, judged and distilled.

update(x) = D act(G n(x) + b, U n(x) + c) + d         n: the group's norm without any gain
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn import functional as F

from fxfuse.passes.records import Block
from fxfuse.passes.view import View
from fxfuse.passes.weights import Wide
from fxfuse.reference import activated, unit_norm

__all__ = ["WideFfn", "pieces", "rounded", "rows_of"]

_AT_ONCE = 1 << 27
"""Bytes of inner activations that are computed at a time."""


class WideFfn:
    """The function that any weights of a group stand for; `first` is the group's first block."""

    def __init__(self, view: View, first: Block) -> None:
        self.view, self.first = view, first

    def unit(self, x: torch.Tensor) -> torch.Tensor:
        """n(x) [tokens, hidden] in float32."""
        return unit_norm(self.first.norm, x.float())

    def inner(self, wide: Wide, unit: torch.Tensor) -> torch.Tensor:
        """What the down projection reads, [tokens, width]."""
        return activated(self.view, self.first, wide, unit)

    def update(self, wide: Wide, unit: torch.Tensor) -> torch.Tensor:
        """What the group adds to the stream, [tokens, hidden]."""
        return F.linear(self.inner(wide, unit), wide.down, wide.down_bias)

    def apply(self, wide: Wide, x: torch.Tensor) -> torch.Tensor:
        """The stream after the group for x [..., hidden], in x's type; a part of the tokens at a time."""
        rows = x.reshape(-1, x.shape[-1])
        updates = [self.update(wide, self.unit(part)) for part in pieces(rows, wide)]
        return (rows + torch.cat(updates)).to(x.dtype).view(x.shape)


def pieces(rows: torch.Tensor, wide: Wide) -> Iterator[torch.Tensor]:
    """`rows` [tokens, ...] in parts whose inner activations, in float64, stay small."""
    count = max(16, _AT_ONCE // (8 * len(wide.gate)))
    yield from (rows[start : start + count] for start in range(0, len(rows), count))


def rounded(wide: Wide, dtype: torch.dtype) -> Wide:
    """The weights as they are written: rounded to `dtype` once, held in float32."""
    return wide.map(lambda tensor: tensor.to(dtype).float())


def rows_of(wide: Wide, rows: slice) -> Wide:
    """The part of a wide FFN that one of its blocks is, without the down bias."""
    first = replace(wide, down=wide.down.T, down_bias=None).map(lambda tensor: tensor[rows])
    return replace(first, down=first.down.T)
