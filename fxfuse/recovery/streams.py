"""The stream that each group reads once the groups before it are fused, kept for every batch.

x of the first group: the sequential model's         x^ of the next one: run from what this one gives,
across whatever lies between, attention too
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from fxfuse.analysis.states import States
from fxfuse.passes.records import Block, Value
from fxfuse.passes.view import root
from fxfuse.passes.weights import Wide
from fxfuse.recovery.ffn import WideFfn

__all__ = ["Stream"]

Group = Sequence[Block]


class Stream:
    """The stream before one group after the other, on one part of the data, under a `name` of its own."""

    def __init__(self, states: States, groups: Sequence[Group], name: str) -> None:
        self.states, self.groups, self._name = states, groups, name
        for place in range(len(states.batches)):
            self._put(0, place, states.get(groups[0][0].x, place))

    def key(self, index: int) -> Hashable:
        """Where the stream before group `index` lies in the states' store."""
        return ("stream", self._name, self.states.part, index)

    def start(self, index: int, place: int) -> torch.Tensor:
        """The stream before group `index` on one batch, [..., hidden]."""
        return self.states.store.get(self.key(index), place)

    def onward(self, index: int, place: int, end: torch.Tensor, wanted: Value) -> torch.Tensor:
        """`wanted`, where the stream after group `index` is `end`."""
        out = self.groups[index][-1].out
        if root(self.states.front.view, wanted) == out:
            return end
        return self.states.front.run(self.states.batches[place], [wanted], {out: end})[0]

    def advance(self, index: int, ffn: WideFfn, wide: Wide) -> None:
        """Pass group `index`, fused with these weights."""
        if index + 1 < len(self.groups):
            following = self.groups[index + 1][0].x
            for place in range(len(self.states.batches)):
                end = ffn.apply(wide, self.start(index, place))
                self._put(index + 1, place, self.onward(index, place, end, following))
            self.states.store.drop(self.key(index))

    def _put(self, index: int, place: int, value: torch.Tensor) -> None:
        self.states.store.put(self.key(index), place, value)
