"""The order in which windows are learned from: fixed by seed and step, so that steps can be redone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch

__all__ = ["Windows", "cut"]


class Windows:
    """Windows of calibration data, drawn in batches of `size`; each pass over them is in another order.

    Windows of different lengths never meet in a batch. What does not fill one is left out of the pass.
    """

    def __init__(self, batches: Sequence[Batch], size: int, seed: int) -> None:
        self.groups = _group(batches)
        self.size, self.seed = size, seed
        counts = [_rows(group) for group in self.groups]
        self.per_pass = sum(count // size for count in counts)
        if not self.per_pass:
            most = max(counts, default=0)
            raise InputError(
                f"The data hold {most} windows to learn from, fewer than a batch_size of {size}: give more "
                "data or a smaller batch_size."
            )
        self._order: list[tuple[int, np.ndarray]] = []
        self._pass = -1

    def draw(self, step: int) -> dict[str, Tensor]:
        """The batch of a step, counted from 0."""
        number, place = divmod(step, self.per_pass)
        if number != self._pass:
            self._order, self._pass = self._shuffle(number), number
        group, rows = self._order[place]
        return {name: tensor[torch.from_numpy(rows)] for name, tensor in self.groups[group].items()}

    def _shuffle(self, number: int) -> list[tuple[int, np.ndarray]]:
        generator = np.random.default_rng([self.seed, number])
        batches = []
        for index, group in enumerate(self.groups):
            rows = generator.permutation(_rows(group))
            batches += [
                (index, rows[start : start + self.size])
                for start in range(0, len(rows) - self.size + 1, self.size)
            ]
        return [batches[place] for place in generator.permutation(len(batches))]


def cut(batch: Batch, rows: int) -> list[dict[str, Tensor]]:
    """The batch in pieces of `rows` windows; the last may be smaller."""
    names = list(batch)
    pieces = zip(*(torch.split(batch[name], rows) for name in names), strict=True)
    return [dict(zip(names, piece, strict=True)) for piece in pieces]


def _group(batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
    """Put together what has the same inputs of the same length."""
    kinds: dict[tuple[object, ...], list[Batch]] = defaultdict(list)
    for batch in batches:
        kinds[tuple((name, value.shape[1:], value.dtype) for name, value in batch.items())].append(batch)
    return [
        {name: torch.cat([each[name] for each in alike]) for name in alike[0]} for alike in kinds.values()
    ]


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))
