"""What a model computes on one part of the calibration data, captured in one sequential pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch

from fxfuse.calibration.batches import positions, tokens_of
from fxfuse.calibration.store import Activations
from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch, Runnable
from fxfuse.passes.attention import stream_updates
from fxfuse.passes.records import Value
from fxfuse.progress import Progress, silent, track

__all__ = ["States", "not_finite", "slices", "spread"]

_WORDS = {"fit": "data to fit on", "held_out": "data held out"}

Watch = Callable[[Mapping[Value, torch.Tensor], "torch.Tensor | None"], None]
"""Takes the values of one batch, and which of its tokens count."""


class States:
    """`kept` values of every batch, in `store`; `logits`, where given, too if they fit into its memory.

    Raises:
        InputError: The model gives NaN or infinity; names the first layer that does.
    """

    def __init__(
        self,
        front: Runnable,
        batches: Sequence[Batch],
        store: Activations,
        kept: Sequence[Value],
        *,
        part: str,
        logits: Value | None = None,
        watched: Sequence[Value] = (),
        watch: Watch | None = None,
        progress: Progress = silent,
    ) -> None:
        self.front, self.batches, self.store, self.part = front, list(batches), store, part
        self._kept, self._logits, self._stores_logits = list(dict.fromkeys(kept)), logits, False
        told = f"running the model on the {_WORDS[part]}"
        for place, batch in enumerate(track(self.batches, told, progress)):
            self._capture(place, batch, watched, watch)

    def get(self, value: Value, place: int) -> torch.Tensor:
        """A kept value on the batch at `place`; one that was not kept is computed."""
        if value in self._kept:
            return self.store.get((self.part, value), place)
        return self.front.run(self.batches[place], [value])[0]

    def stream(self, key: Hashable, place: int) -> torch.Tensor:
        """What lies in the store under any key."""
        return self.store.get(key, place)

    def logits(self, place: int) -> torch.Tensor:
        """The original's logits on a batch: as they were kept, or computed from the last value that was."""
        assert self._logits is not None
        if self._stores_logits:
            return self.store.get((self.part, self._logits), place)
        known = {value: self.get(value, place) for value in self._kept[-1:]}
        return self.front.run(self.batches[place], [self._logits], known)[0]

    def reads(self, logits: Value) -> None:
        """Let `logits` compute that value, where none was captured."""
        self._logits = self._logits or logits

    def mask(self, place: int) -> torch.Tensor | None:
        """Which tokens of a batch count; None for all."""
        return positions(self.batches[place])

    def places(self, tokens: int | None) -> list[int]:
        """Some batches, spread over all, that hold about `tokens` tokens; all for None."""
        return spread(self.batches, tokens)

    def _capture(self, place: int, batch: Batch, watched: Sequence[Value], watch: Watch | None) -> None:
        wanted = list(dict.fromkeys([*self._kept, *watched]))
        ends = [] if self._logits is None else [self._logits]
        if not wanted and not ends:
            return
        found = self.front.run(batch, [*wanted, *ends])
        values = dict(zip(wanted, found, strict=False))
        if not all(bool(torch.isfinite(each).all()) for each in values.values()):
            raise InputError(_not_finite(self.front, batch))
        if ends:
            self._keep_logits(place, found[-1])
        for value in self._kept:
            self.store.put((self.part, value), place, values[value])
        if watch is not None:
            watch(values, positions(batch))

    def _keep_logits(self, place: int, logits: torch.Tensor) -> None:
        if bool((logits.isnan() | logits.isposinf()).any()):  # minus infinity is how a class is ruled out
            raise InputError(_not_finite(self.front, self.batches[place], "its logits"))
        if place == 0:
            room = self.store.bound - self.store.bytes_in_memory
            self._stores_logits = not self._kept or logits.nbytes * len(self.batches) <= room // 2
        if self._stores_logits:
            self.store.put((self.part, self._logits), place, logits)


def spread(batches: Sequence[Batch], tokens: int | None) -> list[int]:
    """The places of some batches, spread over all, that hold about `tokens` tokens; all for None."""
    sizes = [tokens_of([batch]) for batch in batches]
    if tokens is None or tokens >= sum(sizes):
        return list(range(len(sizes)))
    count = max(1, round(tokens * len(sizes) / sum(sizes)))
    return sorted({math.floor((index + 0.5) * len(sizes) / count) for index in range(count)})


def slices(batches: Sequence[Batch], tokens: int) -> list[Batch]:
    """The same windows in batches of at most `tokens` tokens, or of one window."""
    cut: list[Batch] = []
    for batch in batches:
        rows = len(next(iter(batch.values())))
        fit = max(1, min(rows, tokens * rows // max(1, tokens_of([batch]))))
        whole = any(len(each) != rows for each in batch.values() if each.dim()) or fit == rows
        starts = [0] if whole else range(0, rows, fit)
        cut += [batch] if whole else [{n: t[at : at + fit] for n, t in batch.items()} for at in starts]
    return cut


def not_finite(what: str) -> str:
    """What a user is told of a model that gives no numbers at `what`."""
    return (
        f"The original model gives NaN or infinity at {what} on the calibration data: check the model and "
        "its number type."
    )


def _not_finite(front: Runnable, batch: Batch, what: str = "the residual stream") -> str:
    """Which layer is the first to give NaN or infinity."""
    updates = stream_updates(front.view)
    for update, value in zip(updates, front.run(batch, [update.out for update in updates]), strict=True):
        if not bool(torch.isfinite(value).all()):
            what = update.name
            break
    return not_finite(what)
