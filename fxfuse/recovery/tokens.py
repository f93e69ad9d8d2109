"""The tokens of one group: the stream it reads, the stream it has to give, and how much each token counts.

x    the stream before the group, as the fused model gives it: earlier groups are fused already
end  x_n of the sequential model
weight  1 / |x_n|^2, since what comes next divides the stream by its norm
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from fxfuse.analysis.drift import counted
from fxfuse.calibration.store import Activations
from fxfuse.frontends.protocol import Batch
from fxfuse.passes.records import Block, Value

__all__ = ["Captured", "GroupTokens", "Tokens", "token_weights"]

_LEAST = 1e-4
"""No token counts as if |x_n|^2 were below this share of the batch's mean."""


class Captured(Protocol):
    """What a model computes on one part of the data, kept in `store`: `fxfuse.analysis.states.States`."""

    @property
    def store(self) -> Activations:
        """Where it lies, and where more may be kept."""

    @property
    def batches(self) -> Sequence[Batch]:
        """The inputs."""

    def get(self, value: Value, place: int) -> torch.Tensor:
        """A kept value on the batch at `place`."""

    def stream(self, key: Hashable, place: int) -> torch.Tensor:
        """What lies in the store under `key`, on the model's device."""

    def mask(self, place: int) -> torch.Tensor | None:
        """Which tokens of a batch count; None for all."""


@dataclass(frozen=True)
class Tokens:
    """Some tokens, in float32: x, end [tokens, hidden], weight [tokens]."""

    x: torch.Tensor
    end: torch.Tensor
    weight: torch.Tensor


class GroupTokens:
    """One part of the calibration data as a group sees it; goes through it batch by batch.

    `start` is the key under which the stream before the group lies in the states' store.
    """

    def __init__(self, states: Captured, blocks: Sequence[Block], start: Hashable) -> None:
        self.states, self.blocks, self._start = states, tuple(blocks), start
        self.places = range(len(states.batches))

    def __iter__(self) -> Iterator[Tokens]:
        return map(self.at, self.places)

    def at(self, place: int) -> Tokens:
        """The tokens of one batch."""
        end = self._rows(self.states.get(self.blocks[-1].out, place), place)
        return Tokens(self._rows(self.start(place), place), end, self._weight(end))

    def start(self, place: int) -> torch.Tensor:
        """The stream before the group on one batch, [..., hidden], as it is stored."""
        return self.states.stream(self._start, place)

    def read(self, block: Block, place: int) -> torch.Tensor:
        """What `block` reads in the sequential model, [tokens, hidden]."""
        return self._rows(self.states.get(block.x, place), place)

    def _rows(self, value: torch.Tensor, place: int) -> torch.Tensor:
        return counted(value, self.states.mask(place)).float()

    def _weight(self, end: torch.Tensor) -> torch.Tensor:
        return token_weights(end, centred=self.blocks[-1].norm.kind == "layer")


def token_weights(end: torch.Tensor, *, centred: bool) -> torch.Tensor:
    """1 / |x|^2 for x [tokens, hidden]; of x without its mean where norms take that away."""
    seen = end - end.mean(-1, keepdim=True) if centred else end
    power = seen.double().square().sum(-1)
    least = _LEAST * float(power.mean()) if len(power) else 0.0
    return power.clamp(min=max(least, 1e-30)).reciprocal().float()
