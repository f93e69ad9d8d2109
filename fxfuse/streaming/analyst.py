r"""All measurements of an analysis in one pass over the files.

    fit        x ----------------------------------------->      drift, cosines, local errors
               |-- update i left out ---------------------->      M_ij: what update j adds there and here
    held out   x ----------------------------------------->      logits
               |-- x_a + sum of f_i(x_a), from the group's end -> logits, and their KL
               |-- without one attention ------------------>      logits, and their KL

While a chain is passed, x_a of each first block a and the sum of the branches on it are kept beside x.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations, product

import torch

from fxfuse.analysis.changes import add
from fxfuse.analysis.drift import CosineMeter, DriftMeter, counted
from fxfuse.analysis.segments import Choice, lengths_measured
from fxfuse.analysis.states import not_finite
from fxfuse.calibration.store import Activations
from fxfuse.divergence import DivergenceMeter
from fxfuse.errors import InputError
from fxfuse.numerics import ErrorMeter
from fxfuse.streaming.model import Branch, DiskModel
from fxfuse.streaming.streams import Streams, compare
from fxfuse.streaming.sweep import Place

__all__ = ["Analyst"]

Span = tuple[int, int, int]
"""A chain, the first and the last block of a segment."""


class Analyst:
    """Gathers every figure; the meters go on from pass to pass."""

    def __init__(
        self, model: DiskModel, store: Activations, choice: Choice, *, dependency: bool, attention: bool
    ) -> None:
        self.model, self.store, self.chains = model, store, model.chains
        self.streams = Streams(store, model.device)
        self.attentions = [at for at, each in enumerate(model.updates) if each.kind == "attention"]
        self.lengths = {
            (c, a): lengths_measured(len(blocks), a, choice)
            for c, blocks in enumerate(self.chains)
            for a in range(len(blocks) - 1)
        }
        self.drifts = [DriftMeter(len(blocks)) for blocks in self.chains]
        self.cosines = {at: CosineMeter() for at in self.attentions}
        self.errors = {
            (c, a, b): ErrorMeter()
            for c, blocks in enumerate(self.chains)
            for a, b in combinations(range(len(blocks)), 2)
        }
        self.kls = {
            (c, a, a + length - 1): DivergenceMeter()
            for (c, a), lengths in self.lengths.items()
            for length in sorted(lengths)
        }
        self.without = {at: DivergenceMeter() for at in (self.attentions if attention else ())}
        count = len(model.updates) if dependency else 0
        self.dependencies = {(i, j): CosineMeter() for j in range(count) for i in range(j)}
        self._in_chain = {at: (c, b) for c, blocks in enumerate(self.chains) for b, at in enumerate(blocks)}

    def most_streams(self, place: Place) -> int:
        """How many streams of a batch are kept at once at most; a sum takes as much as two."""
        longest = 3 * max(map(len, self.chains), default=0)
        if place.part == "held_out":
            return 1 + longest + len(self.kls) + len(self.without)
        return 1 + longest + (len(self.model.updates) if self.dependencies and place.counts else 0)

    def begin(self, place: Place, x: torch.Tensor) -> None:
        """See `Visitor`."""
        self.streams.put("x", place, x)

    def update(self, number: int, place: Place, branch: Branch) -> None:
        """See `Visitor`."""
        x = self.streams.get("x", place)
        added = branch(x)
        out = x + added
        if not bool(torch.isfinite(out).all()):
            raise InputError(not_finite(self.model.updates[number].name))
        for key in self.streams.changed(place):
            self._go_on(key, number, place, branch, added)
        if place.part == "fit" and number in self.cosines:
            self.cosines[number].add(x, out, place.mask)
        if number in self._in_chain:
            self._segments(number, place, branch, x, added)
        self._leave_out(number, place, x)
        self.streams.put("x", place, out)

    def after(self, number: int) -> None:
        """See `Visitor`."""
        for blocks in self.chains:
            if number == blocks[-1]:
                for first, role in product(range(len(blocks) - 1), ("start", "sum")):
                    self.streams.drop((role, first))

    def end(self, place: Place, logits: Branch) -> None:
        """See `Visitor`."""
        if place.part == "held_out":
            meters: dict[Hashable, DivergenceMeter] = {("fused", *span): self.kls[span] for span in self.kls}
            meters |= {("without", at): meter for at, meter in self.without.items()}
            compare(self.streams, place, logits, meters)

    def _go_on(
        self, key: tuple[Hashable, ...], number: int, place: Place, branch: Branch, added: torch.Tensor
    ) -> None:
        """Take a changed stream through an update."""
        y = self.streams.get(key, place)
        other = branch(y)
        if key[0] == "left":
            self.dependencies[key[1], number].add(added, other, place.mask)  # type: ignore[index]
        self.streams.put(key, place, y + other)

    def _leave_out(self, number: int, place: Place, x: torch.Tensor) -> None:
        """Let streams leave where an update is left out."""
        if place.part == "held_out":
            if number in self.without:
                self.streams.leave(("without", number), place, x)
        elif place.counts and (number, number + 1) in self.dependencies:
            self.streams.leave(("left", number), place, x)

    def _segments(
        self, number: int, place: Place, branch: Branch, x: torch.Tensor, added: torch.Tensor
    ) -> None:
        """Go on with the segments that hold a block; those that end with it are measured."""
        chain, block = self._in_chain[number]
        last = len(self.chains[chain]) - 1
        for first in self._firsts(chain, block, place):
            if first == block:
                self.streams.put(("start", first), place, x)
                total = added.to(torch.promote_types(added.dtype, torch.float32))
            else:
                start = self.streams.get(("start", first), place)
                total = self.streams.get(("sum", first), place) + branch(start)
                self._measure((chain, first, block), place, start, x + added, add(start, total))
            self.streams.put(("sum", first), place, total)
        if block == last and place.part == "fit":
            starts = [self.streams.get(("start", first), place) for first in range(last)]
            self.drifts[chain].add([*starts, x], place.mask)

    def _firsts(self, chain: int, block: int, place: Place) -> Sequence[int]:
        """The first blocks of the segments that a block belongs to, as far as they are measured there."""
        firsts = range(min(block + 1, len(self.chains[chain]) - 1))
        if place.part == "fit":
            return firsts
        longest = {first: max(self.lengths[chain, first], default=0) for first in firsts}
        return [first for first in firsts if block < first + longest[first]]

    def _measure(
        self, span: Span, place: Place, start: torch.Tensor, out: torch.Tensor, fused: torch.Tensor
    ) -> None:
        if place.part == "fit":
            rows = (counted(each, place.mask) for each in (start, out, fused))
            self.errors[span].add(*rows)
        elif span in self.kls:
            self.streams.leave(("fused", *span), place, fused)
