r"""One pass over a checkpoint's files: every update is read once, and all batches go through it.

Which batches go together:   p passes cost  p W + 2 U max(0, A - p M)  bytes of reading and writing

    W  bytes of the checkpoint     U  its updates     M  bytes of streams held in memory
    A  bytes of all streams at once, each of which moves to the disk and back at every update beyond M

This is linear in p, so either all streams go at once, or as few in a pass as fit into memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch

from fxfuse.calibration.batches import leading, positions
from fxfuse.calibration.store import Activations
from fxfuse.frontends.protocol import Batch
from fxfuse.progress import Progress, silent, track
from fxfuse.streaming.model import Branch, DiskModel

__all__ = ["Part", "Place", "Visitor", "divided", "sweep", "ticks", "together"]

Part: TypeAlias = Literal["fit", "held_out"]


@dataclass(frozen=True, eq=False)
class Place:
    """One batch: its number in its part, the part, and whether single changes are measured on it."""

    number: int
    part: Part
    batch: Batch
    counts: bool = True

    @property
    def mask(self) -> torch.Tensor | None:
        """Which of its tokens count; None for all."""
        return positions(self.batch)

    @property
    def slots(self) -> int:
        """Positions of the stream, padding included."""
        return leading(self.batch).numel()


class Visitor(Protocol):
    """What is done in a pass; it keeps its own streams."""

    def begin(self, place: Place, x: torch.Tensor) -> None:
        """Take the stream before the first update, where a pass starts there."""

    def update(self, number: int, place: Place, branch: Branch) -> None:
        """Go through one update with one batch."""

    def after(self, number: int) -> None:
        """All batches went through an update."""

    def end(self, place: Place, logits: Branch) -> None:
        """Every update is passed; `logits` takes a last stream."""


def sweep(
    model: DiskModel,
    places: Sequence[Place],
    visitor: Visitor,
    *,
    start: int = 0,
    stop: int | None = None,
    tell: Callable[[], object] = lambda: None,
) -> None:
    """One pass from update `start` up to `stop`, or to the logits; `tell` is called after every update."""
    if start == 0:
        for place in places:
            visitor.begin(place, model.embedded(place.batch))
    for number in range(start, len(model.updates) if stop is None else stop):
        with model.loaded(number) as update:
            for place in places:
                visitor.update(number, place, update.on(place.batch))
        visitor.after(number)
        tell()
    if stop is None:
        with model.head() as logits:
            for place in places:
                visitor.end(place, logits)


def together(
    model: DiskModel, places: Sequence[Place], streams: Callable[[Place], int], store: Activations
) -> list[list[Place]]:
    """The batches of every pass, where `streams` says how many streams of a batch are kept at once."""
    token = model.hidden_size * model.dtype.itemsize
    sizes = [place.slots * token * streams(place) for place in places]
    moved = 2 * len(model.updates) * store.bound
    free = shutil.disk_usage(store.folder).free
    bound = store.bound if model.tensors.nbytes <= moved else store.bound + free // 2
    return [[places[at] for at in part] for part in divided(sizes, bound)]


def divided(sizes: Sequence[int], bound: int) -> list[list[int]]:
    """The places of `sizes` in runs of at most `bound` together, or of one."""
    found: list[list[int]] = []
    filled = 0
    for place, size in enumerate(sizes):
        if not found or filled + size > bound:
            found.append([])
            filled = 0
        found[-1].append(place)
        filled += size
    return found


def ticks(count: int, what: str, progress: Progress = silent) -> Callable[[], object]:
    """Tells a progress of `count` steps, one at each call."""
    steps: Iterator[int] = iter(track(range(count), what, progress))
    next(steps, None)
    return lambda: next(steps, None)
