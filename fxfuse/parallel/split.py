"""Which channels of a product each rank holds, where several products are packed into one.

    packed gate_up, 2 ranks      [ gate: a a b b | up: c c d d ]
    rank 0                       [ a a | c c ]                      matching halves: act(a) * c
    rank 1                       [ b b | d d ]

Cut in the middle, rank 0 would hold all of gate and rank 1 all of up. So each part is cut by itself. A part
that does not divide by the ranks is filled with channels of zeros at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Split"]


@dataclass(frozen=True)
class Split:
    """Parts of `sizes` channels, one after another, shared out over `ranks`."""

    sizes: tuple[int, ...]
    ranks: int

    @property
    def shares(self) -> tuple[int, ...]:
        """Channels of each part on one rank, zeros included."""
        return tuple(-(-size // self.ranks) for size in self.sizes)

    @property
    def padding(self) -> int:
        """Channels of zeros over all ranks and parts."""
        return sum(self.shares) * self.ranks - sum(self.sizes)

    def spans(self, rank: int) -> list[tuple[int, int, int]]:
        """What `rank` holds of each part: from where, to where, and how many zeros after it."""
        spans, offset = [], 0
        for size, share in zip(self.sizes, self.shares, strict=True):
            start, stop = (min(size, at * share) for at in (rank, rank + 1))
            spans.append((offset + start, offset + stop, share - (stop - start)))
            offset += size
        return spans

    def local(self, tensor: torch.Tensor, dim: int, rank: int) -> torch.Tensor:
        """What `rank` holds of a whole tensor along `dim`, in memory of its own."""
        shape = list(tensor.shape)
        shape[dim] = sum(self.shares)
        out, offset = tensor.new_empty(shape), 0
        for start, stop, zeros in self.spans(rank):
            out.narrow(dim, offset, stop - start).copy_(tensor.narrow(dim, start, stop - start))
            out.narrow(dim, offset + stop - start, zeros).zero_()
            offset += stop - start + zeros
        return out

    def whole(self, pieces: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        """The tensor again, from what the ranks hold, in their order."""
        parts, offset = [], 0
        for size, share in zip(self.sizes, self.shares, strict=True):
            part = torch.cat([piece.narrow(dim, offset, share) for piece in pieces], dim)
            parts.append(part.narrow(dim, 0, size))
            offset += share
        return torch.cat(parts, dim)
