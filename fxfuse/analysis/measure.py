r"""Every measurement of a model before anything is changed, on states that are captured once.

    fit part        x_a ... x_b of every chain         drift, local errors (and what recovery fits on)
    held-out part   the same, and the logits           every KL

A group a..b alone fused is x_a + sum of f_i(x_a) in the place of x_b, and the model from there on; so a
measurement costs the group's FFNs and what lies behind it, never what lies before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol

import torch

from fxfuse.analysis.changes import Change, add, branches, changed, in_order, running_sums
from fxfuse.analysis.drift import CosineMeter, DriftMeter, counted
from fxfuse.analysis.states import States, slices
from fxfuse.calibration import Calibration
from fxfuse.calibration.store import DEFAULT_BOUND, Activations
from fxfuse.divergence import Divergence, DivergenceMeter
from fxfuse.frontends.protocol import Batch, Runnable
from fxfuse.numerics import ErrorMeter, GroupError
from fxfuse.passes.attention import find_attention
from fxfuse.passes.chains import find_chains
from fxfuse.passes.records import Block, Value
from fxfuse.progress import Progress, silent, track

__all__ = ["Measurements", "Update"]


class Update(Protocol):
    """What can be left out of the stream: a block, an attention."""

    @property
    def x(self) -> Value:
        """The stream before it."""

    @property
    def out(self) -> Value:
        """The stream after it."""


class Measurements:
    """Measures one model on calibration data; a context manager that frees the states it captured.

    Each part's states are captured when they are first asked for.

    Args:
        front: The model.
        calibration: The data: a part to fit on, and one held out.
        memory: Bytes of states that are held in memory; what comes on top goes to a temporary file.
        kl_tokens: About how many held-out tokens (whole batches of them) the KL of single changes is measured
            on; all for None.
        progress: Told of every pass.
    """

    def __init__(
        self,
        front: Runnable,
        calibration: Calibration,
        *,
        memory: int = DEFAULT_BOUND,
        kl_tokens: int | None = None,
        progress: Progress = silent,
    ) -> None:
        self.front, self.calibration, self.progress = front, calibration, progress
        self.found = find_chains(front.view)
        self.chains = self.found.chains
        self.attention = find_attention(front.view)[0]
        self.store = Activations(memory)
        self.memory, self.kl_tokens = memory, kl_tokens
        self._drifts = [DriftMeter(len(chain.blocks)) for chain in self.chains]
        self._cosines = [CosineMeter() for _ in self.attention]
        pairs = [pair for chain in self.chains for pair in zip(chain.blocks, chain.blocks[1:], strict=False)]
        self._same = {before.out: after.x for before, after in pairs}

    def __enter__(self) -> Measurements:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close()

    @functools.cached_property
    def fit(self) -> States:
        """The fitting part: the stream before every block of a chain, and after its last one."""
        watched = [value for each in self.attention for value in (each.x, each.out)]
        return self._states(self.calibration.fit, "fit", None, watched)

    @functools.cached_property
    def held_out(self) -> States:
        """The held-out part: the same, and the logits.

        Raises:
            InputError: The model has no logits.
        """
        return self._states(self.calibration.held_out, "held_out", self.logits, ())

    def drift(self, chain: int, first: int, last: int) -> float:
        """Sum over q of the mean of 1 - cos(x_{first+q}, x_first) for blocks `first`..`last` of a chain."""
        _ = self.fit
        return self._drifts[chain].drift(first, last)

    def cosines(self) -> list[float]:
        """The mean cosine of the stream before and after each of `attention` (LLM-Drop, arXiv 2406.15786)."""
        _ = self.fit
        return [meter.result() for meter in self._cosines]

    def local_error(self, blocks: Sequence[Block]) -> GroupError:
        """The error of consecutive blocks as one group, at its own output."""
        return self.local_errors(blocks)[-1]

    def local_errors(self, blocks: Sequence[Block]) -> list[GroupError]:
        """The errors of the groups that start at the first block, by length from 1 to all."""
        meters = [ErrorMeter() for _ in blocks]
        for place in range(len(self.fit.batches)):
            mask = self.fit.mask(place)
            x = self.fit.get(blocks[0].x, place)
            start = counted(x, mask)
            for meter, block, out in zip(
                meters, blocks, self._prefixes(self.fit, place, blocks), strict=True
            ):
                meter.add(start, counted(self._end(self.fit, block, place), mask), counted(out, mask))
        return [meter.result() for meter in meters]

    def segment_kl(self, blocks: Sequence[Block]) -> Divergence:
        """The KL at the logits with consecutive blocks alone fused, on about `kl_tokens` held-out tokens."""
        return self.segment_kls(blocks, [len(blocks)])[len(blocks)]

    def segment_kls(
        self, blocks: Sequence[Block], lengths: Collection[int], tell: Callable[[], object] = lambda: None
    ) -> dict[int, Divergence]:
        """The KL of groups of these lengths that start at the first block; `tell` is called at each run."""
        meters = {length: DivergenceMeter() for length in lengths}
        states = self.held_out
        for place in states.places(self.kl_tokens):
            batch, original = states.batches[place], states.logits(place)
            outs = self._prefixes(states, place, blocks[: max(lengths, default=0)])
            for length, out in enumerate(outs, 1):
                if length in meters:
                    tell()
                    (other,) = self.front.run(batch, [self.logits], {blocks[length - 1].out: out})
                    meters[length].add(original, other, states.mask(place))
        return {length: meter.result() for length, meter in meters.items()}

    def groups_kl(self, groups: Sequence[Sequence[Block]], part: str = "held_out") -> Divergence:
        """The KL with several groups fused at once, of any chains, on the whole held-out (or "fit") part."""
        return self.changes_kl([Change.of(group) for group in groups if len(group) > 1], part)

    def left_out_kls(self, updates: Sequence[Update]) -> list[Divergence]:
        """The KL with each of these updates (blocks, attentions) left out alone, on `kl_tokens` or so."""
        states, streams = self.held_out, [each.x for each in updates]
        places = states.places(self.kl_tokens) if updates else []
        meters = [DivergenceMeter() for _ in updates]
        jobs = [(place, index) for place in places for index in range(len(updates))]
        for place, index in track(jobs, "leaving out attention", self.progress):
            batch = states.batches[place]
            if index == 0:
                original, before = states.logits(place), self.front.run(batch, streams)
            (other,) = self.front.run(batch, [self.logits], {updates[index].out: before[index]})
            meters[index].add(original, other, states.mask(place))
        return [meter.result() for meter in meters]

    def removed_kl(self, updates: Sequence[Update], part: str = "held_out") -> Divergence:
        """The KL with these updates (blocks, attentions) left out, all at once, on the whole part."""
        return self.changes_kl([Change(each.x, each.out) for each in updates], part)

    def changes_kl(
        self, changes: Sequence[Change], part: str = "held_out", tokens: int | None = None
    ) -> Divergence:
        """The KL with all `changes` at once, on about `tokens` tokens of a part, all of it for None."""
        states, changes = self._part(part), in_order(self.front, changes)
        meter = DivergenceMeter()
        for place in states.places(tokens):
            original = states.logits(place)
            other = original
            if changes:
                x, batch = states.get(changes[0].x, place), states.batches[place]
                other = changed(self.front, batch, changes, x, self.logits)
            meter.add(original, other, states.mask(place))
        return meter.result()

    @functools.cached_property
    def logits(self) -> Value:
        """The output that holds the logits."""
        return self.front.logits((self.calibration.held_out or self.calibration.fit)[0])

    def _part(self, part: str) -> States:
        if part not in ("fit", "held_out"):
            raise ValueError(f"part is 'fit' or 'held_out', not {part!r}")
        states = self.fit if part == "fit" else self.held_out
        states.reads(self.logits)
        return states

    def _states(
        self, batches: Sequence[Batch], part: str, logits: Value | None, watched: Sequence[Value]
    ) -> States:
        kept = [value for chain in self.chains for value in self._stream(chain.blocks)]
        hidden = max((block.hidden_size for block in self.blocks), default=1)
        # States of a batch stand in memory beside those that are kept.
        fit = self.memory // (4 * hidden * max(1, len(kept) + len(watched)))
        return States(
            self.front,
            slices(batches, max(1, fit)),
            self.store,
            kept,
            part=part,
            logits=logits,
            watched=watched,
            watch=self._watch if part == "fit" else None,
            progress=self.progress,
        )

    def _watch(self, values: Mapping[Value, torch.Tensor], mask: torch.Tensor | None) -> None:
        for meter, chain in zip(self._drifts, self.chains, strict=True):
            meter.add([values[block.x] for block in chain.blocks], mask)
        for cosine, each in zip(self._cosines, self.attention, strict=True):
            cosine.add(values[each.x], values[each.out], mask)

    @property
    def blocks(self) -> Iterator[Block]:
        """Every FFN block: those of chains, then the others."""
        yield from (block for chain in self.chains for block in chain.blocks)
        yield from self.found.singles

    def _stream(self, blocks: Sequence[Block]) -> list[Value]:
        return [*(block.x for block in blocks), blocks[-1].out]

    def _end(self, states: States, block: Block, place: int) -> torch.Tensor:
        """The stream after a block of a chain."""
        return states.get(self._same.get(block.out, block.out), place)

    def _prefixes(self, states: States, place: int, blocks: Sequence[Block]) -> Iterator[torch.Tensor]:
        """The outputs of the groups that start at the first block, by length."""
        x = states.get(blocks[0].x, place)
        parts = branches(self.front, states.batches[place], blocks, x)
        yield from (add(x, total) for total in running_sums(parts))
