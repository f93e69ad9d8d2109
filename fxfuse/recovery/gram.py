"""Sums over tokens in float64: A'A and A'R of weighted rows, with A what the down projection reads.

    A = sqrt(w) * inner(n(x))  [tokens, width]        R = sqrt(w) * (end - x - update(x))  [tokens, hidden]

Their condition is 1e6 and worse, so nothing here is float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from fxfuse.passes.weights import Wide
from fxfuse.progress import Progress, silent, track
from fxfuse.recovery.ffn import WideFfn, pieces
from fxfuse.recovery.tokens import GroupTokens

__all__ = ["Gram", "inner_rows", "mirror", "residual_rows", "symmetric_sum"]

_PANEL = 1024
Pair = tuple[torch.Tensor, torch.Tensor]


class Gram:
    """A'A [width, width] and A'R [width, hidden] over all tokens of a part."""

    def __init__(self, ffn: WideFfn, tokens: GroupTokens, wide: Wide, progress: Progress = silent) -> None:
        width, hidden = wide.down.shape[1], wide.down.shape[0]
        self.matrix = torch.zeros(width, width, dtype=torch.float64, device=wide.down.device)
        self.moment = self.matrix.new_zeros(width, hidden)
        places = track(tokens.places, "adding up the Gram matrix", progress)
        for inner, residual in residual_rows(ffn, tokens, wide, places):
            symmetric_sum(self.matrix, inner)
            self.moment.addmm_(inner.T, residual)
        mirror(self.matrix)

    @property
    def scale(self) -> float:
        """The mean of the diagonal, which penalties are shares of."""
        return float(self.matrix.diagonal().mean())


def inner_rows(ffn: WideFfn, tokens: GroupTokens, wide: Wide, place: int) -> Iterator[Pair]:
    """A and sqrt(w) [tokens, 1] of one batch in float64, some tokens at a time."""
    given = tokens.at(place)
    roots = given.weight.double().sqrt().unsqueeze(-1)
    for x, root in zip(pieces(given.x, wide), pieces(roots, wide), strict=True):
        yield ffn.inner(wide, ffn.unit(x)).double() * root, root


def residual_rows(
    ffn: WideFfn, tokens: GroupTokens, wide: Wide, places: Iterable[int] | None = None
) -> Iterator[Pair]:
    """A and R of these batches, or of all, some tokens at a time."""
    down = wide.down.double()
    for place in tokens.places if places is None else places:
        given = tokens.at(place)
        missing = given.end.double() - given.x.double()
        if wide.down_bias is not None:
            missing = missing - wide.down_bias.double()
        parts = pieces(missing, wide)
        for (inner, root), part in zip(inner_rows(ffn, tokens, wide, place), parts, strict=True):
            yield inner, part * root - inner @ down.T


def symmetric_sum(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Total += rows' rows, its upper triangle alone, panel by panel: half the work of a whole product."""
    for start in range(0, len(total), _PANEL):
        stop = min(start + _PANEL, len(total))
        total[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])


def mirror(matrix: torch.Tensor) -> None:
    """Fill what `symmetric_sum` left out."""
    for start in range(0, len(matrix), _PANEL):
        stop = min(start + _PANEL, len(matrix))
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
