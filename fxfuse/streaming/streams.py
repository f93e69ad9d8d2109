"""The streams of a pass: the sequential one, called "x", and changed ones that leave it and run beside it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias, get_args

import torch

from fxfuse.analysis.states import not_finite
from fxfuse.calibration.store import Activations
from fxfuse.divergence import DivergenceMeter
from fxfuse.errors import InputError
from fxfuse.streaming.model import Branch
from fxfuse.streaming.sweep import Part, Place

__all__ = ["Key", "Streams", "compare"]

Key: TypeAlias = tuple[Hashable, ...]


class Streams:
    """Streams by key and batch, kept in `store` and computed with on `device`."""

    def __init__(self, store: Activations, device: torch.device) -> None:
        self.store, self.device = store, device
        self._changed: dict[Place, list[Key]] = {}

    def put(self, key: Hashable, place: Place, stream: torch.Tensor) -> None:
        """Keep a stream in the place of what was kept there."""
        self.store.put((place.part, key), place.number, stream.cpu())

    def get(self, key: Hashable, place: Place) -> torch.Tensor:
        """What was kept; not to be written into."""
        return self.store.get((place.part, key), place.number).to(self.device)

    def leave(self, key: Key, place: Place, stream: torch.Tensor) -> None:
        """A changed stream goes on from here, from the next update on."""
        self._changed.setdefault(place, []).append(key)
        self.put(key, place, stream)

    def changed(self, place: Place) -> Sequence[Key]:
        """The changed streams of a batch so far."""
        return tuple(self._changed.get(place, ()))

    def drop(self, key: Hashable) -> None:
        """Forget a stream of all batches."""
        for part in get_args(Part):
            self.store.drop((part, key))

    def forget(self, places: Sequence[Place]) -> None:
        """Forget all streams: these batches are done with."""
        changed = [key for place in places for key in self._changed.pop(place, ())]
        for key in dict.fromkeys(["x", *changed]):
            self.drop(key)


def compare(
    streams: Streams,
    place: Place,
    logits: Branch,
    meters: Mapping[Hashable, DivergenceMeter],
    original: Hashable = "x",
) -> None:
    """Hold the logits of changed streams against those of the `original` one, one window at a time."""
    x, mask = streams.get(original, place), place.mask
    for row in range(len(x)):
        window = slice(row, row + 1)
        given = logits(x[window])
        if bool((given.isnan() | given.isposinf()).any()):
            raise InputError(not_finite("its logits"))
        for key, meter in meters.items():
            counts = None if mask is None else mask[window]
            meter.add(given, logits(streams.get(key, place)[window]), counts)
