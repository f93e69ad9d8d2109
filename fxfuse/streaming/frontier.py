r"""The streams of a recovery: the sequential one, the fused one and the naively fused one, side by side.

    sequential  x ----> | x_a, x_(a+1), ... kept |  x_b ---->          on all data
    fused       y ----> | stays                  |  y + wide(y) ---->  on all data, groups before corrected
    naive       z ----> | stays                  |  z + wide(z) ---->  on the data held out

They go from group to group, so that every layer is read once for them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch

from fxfuse.analysis.states import not_finite
from fxfuse.calibration.store import Activations
from fxfuse.divergence import Divergence, DivergenceMeter
from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch
from fxfuse.passes.records import Value
from fxfuse.streaming.model import Branch, DiskModel
from fxfuse.streaming.streams import Streams, compare
from fxfuse.streaming.sweep import Part, Place, sweep, together

__all__ = ["Frontier", "PartStates", "block_key"]

Wide = Callable[[torch.Tensor], torch.Tensor]
"""A stream through a fused group."""


def block_key(number: int) -> Hashable:
    """Where the stream before a block of the group at hand is kept."""
    return ("block", number)


class Frontier:
    """Goes through the model from group to group; `progress` is told of every update."""

    def __init__(
        self, model: DiskModel, places: Sequence[Place], store: Activations, tell: Callable[[], object]
    ) -> None:
        self.model, self.places, self.tell = model, places, tell
        self.streams = Streams(store, model.device)
        self.at = 0
        self.judged = [place for place in places if place.part == "held_out"]
        self._beside: tuple[str, ...] = ()
        self._captures = False

    def go_to(self, number: int) -> None:
        """Take all streams up to an update."""
        self._sweep(number)
        if not self._beside:
            for place in self.places:
                self.streams.put("y", place, self.streams.get("x", place))
                if place.part == "held_out":
                    self.streams.put("z", place, self.streams.get("x", place))

    def pass_group(self, numbers: Sequence[int]) -> None:
        """Take the sequential stream through a group, and keep what every block reads."""
        self._captures, self._beside = True, ()
        self._sweep(numbers[-1] + 1)
        self._captures, self._beside = False, ("y", "z")

    def fuse(self, kept: Wide, naive: Wide, numbers: Sequence[int]) -> None:
        """Take the fused streams through the group as it was decided on."""
        for place in self.places:
            self.streams.put("y", place, kept(self.streams.get("y", place)))
            if place.part == "held_out":
                self.streams.put("z", place, naive(self.streams.get("z", place)))
        for number in numbers:
            self.streams.drop(block_key(number))

    def race(self, ends: Sequence[tuple[str, Wide]]) -> list[Divergence]:
        """The KL at the logits of several forms of the group just passed, from its end, in one pass.

        `ends` are forms, each with the stream that it reads: "y" or "z".
        """
        meters = [DivergenceMeter() for _ in ends]
        keys: list[Hashable] = [("race", index) for index in range(len(ends))]
        racing = _Race(self.streams, dict(zip(keys, meters, strict=True)))
        for part in together(self.model, self.judged, lambda _: 1 + len(ends), self.streams.store):
            for place in part:
                self.streams.put("sequential", place, self.streams.get("x", place))
                for key, (start, wide) in zip(keys, ends, strict=True):
                    self.streams.put(key, place, wide(self.streams.get(start, place)))
            sweep(self.model, part, racing, start=self.at, tell=self.tell)
            for key in ("sequential", *keys):
                self.streams.drop(key)
        return [meter.result() for meter in meters]

    def begin(self, place: Place, x: torch.Tensor) -> None:
        """See `Visitor`."""
        self.streams.put("x", place, x)

    def update(self, number: int, place: Place, branch: Branch) -> None:
        """See `Visitor`."""
        x = self.streams.get("x", place)
        if self._captures:
            self.streams.put(block_key(number), place, x)
        out = x + branch(x)
        if not bool(torch.isfinite(out).all()):
            raise InputError(not_finite(self.model.updates[number].name))
        self.streams.put("x", place, out)
        for key in self._beside:
            if key == "y" or place.part == "held_out":
                y = self.streams.get(key, place)
                self.streams.put(key, place, y + branch(y))

    def after(self, number: int) -> None:
        """See `Visitor`."""

    def end(self, place: Place, logits: Branch) -> None:
        """See `Visitor`."""

    def _sweep(self, stop: int) -> None:
        sweep(self.model, self.places, self, start=self.at, stop=stop, tell=self.tell)
        self.at = stop


class _Race:
    """Takes the sequential stream and others from a group's end to the logits."""

    def __init__(self, streams: Streams, meters: dict[Hashable, DivergenceMeter]) -> None:
        self.streams, self.meters = streams, meters

    def begin(self, place: Place, x: torch.Tensor) -> None:
        """See `Visitor`: a race begins behind a group."""

    def update(self, number: int, place: Place, branch: Branch) -> None:
        """See `Visitor`."""
        for key in ("sequential", *self.meters):
            x = self.streams.get(key, place)
            self.streams.put(key, place, x + branch(x))

    def after(self, number: int) -> None:
        """See `Visitor`."""

    def end(self, place: Place, logits: Branch) -> None:
        """See `Visitor`."""
        compare(self.streams, place, logits, self.meters, "sequential")


class PartStates:
    """One part of the data as recovery reads it; `keys` tells which stream a value of a group's graph is."""

    def __init__(self, frontier: Frontier, part: Part, keys: dict[Value, Hashable]) -> None:
        self.streams, self.keys = frontier.streams, keys
        self.places = [place for place in frontier.places if place.part == part]
        self.part = part

    @property
    def store(self) -> Activations:
        """See `Captured`."""
        return self.streams.store

    @property
    def batches(self) -> Sequence[Batch]:
        """See `Captured`."""
        return [place.batch for place in self.places]

    def get(self, value: Value, place: int) -> torch.Tensor:
        """See `Captured`."""
        return self.stream(self.keys[value], place)

    def stream(self, key: Hashable, place: int) -> torch.Tensor:
        """See `Captured`."""
        return self.streams.get(key, self.places[place])

    def mask(self, place: int) -> torch.Tensor | None:
        """See `Captured`."""
        return self.places[place].mask
