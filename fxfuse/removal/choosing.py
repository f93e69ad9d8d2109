"""Choose attentions by what leaving them out costs: greedily, measured again after each removal.

In every round each attention that is left is left out on top of those that went, and the KL of the logits to
the whole model's is measured. Of those within budget goes the one with the least KL; but where one that makes
a run of removed attentions longer has at most `patience` times that KL, the cheapest such one goes first,
since a run of k removed attentions makes a chain of k + 1 FFN blocks. It ends when none is within budget.

The first attention stays unless told otherwise: it alone mixes the embeddings, caches take their length from
it, and checkpoint formats want it.

Nothing is rewritten to measure. The stream before every attention is kept from the model as it is so far, and
a candidate is run from its own place on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxfuse.calibration import Calibration
from fxfuse.calibration.store import DEFAULT_BOUND, Activations
from fxfuse.divergence import Divergence, DivergenceMeter
from fxfuse.errors import InputError
from fxfuse.frontends.opening import Model, calibration_for, open_model
from fxfuse.frontends.protocol import Batch, Runnable
from fxfuse.passes.attention import Attention, find_attention
from fxfuse.progress import Progress, silent, track
from fxfuse.removal.records import Candidate, Choice, Step
from fxfuse.removal.running import known_at, run_without
from fxfuse.removal.which import Which, select
from fxfuse.sessions import Provider

__all__ = ["PATIENCE", "choose", "choose_attention"]

PATIENCE = 1.5


def choose_attention(
    model: Model,
    data: Any,
    *,
    number: int | None = None,
    max_kl: float | None = None,
    among: Which | None = None,
    first: bool = False,
    patience: float = PATIENCE,
    memory: int = DEFAULT_BOUND,
    provider: Provider = "auto",
    progress: Progress = silent,
    **reading: Any,
) -> Choice:
    """Choose which attentions to remove: `number` of them, as many as `max_kl` allows, or both.

    Args:
        model: A torch model, an ExportedProgram, or the path of an ONNX file or a function that makes one.
        data: A Calibration or what `Calibration.of` takes. Chosen on the fitting part; the part held out is
            measured once at the end.
        number: Stop at so many.
        max_kl: The KL of the logits without all that went, in nats, stays at or below it.
        among: Only these may go, in any form that `remove_attention` takes.
        first: Whether the model's first attention may go too.
        patience: An attention that makes a run longer goes before another that costs less, but not less than
            a `patience`-th; 1 always takes the cheapest.
        memory: Bytes of activations that are held in memory; what comes on top goes to the disk.
        provider: For ONNX files: "auto", "cuda" or "cpu".
        progress: Called with a short text at every step.
        reading: What `Calibration.of` takes besides: tokenizer, context, max_tokens, batch_size, ...

    Raises:
        InputError: Neither bound is given, one makes no sense, or the model or data cannot be used.
    """
    _check(number, max_kl, patience)
    calibration = calibration_for(model, data, progress, **reading)
    with open_model(model, calibration, provider) as front:
        return choose(
            front, calibration, number=number, max_kl=max_kl, among=among, first=first, patience=patience,
            memory=memory, progress=progress,
        )  # fmt: skip


def choose(
    front: Runnable,
    calibration: Calibration,
    *,
    number: int | None = None,
    max_kl: float | None = None,
    among: Which | None = None,
    first: bool = False,
    patience: float = PATIENCE,
    memory: int = DEFAULT_BOUND,
    progress: Progress = silent,
) -> Choice:
    """`choose_attention` on a model that is open already.

    Raises:
        InputError: As there.
    """
    _check(number, max_kl, patience)
    found, misses = find_attention(front.view)
    meant = found if among is None else select(among, found, misses)
    allowed = [each for each in meant if first or each is not found[0]]
    if not allowed:
        raise InputError("The model has no attention that may go: allow the first one, or another model.")
    with Activations(memory) as held:
        search = _Search(front, calibration, found, held, progress)
        steps, stopped = search.run(allowed, number, max_kl, patience)
    return _judged(front, calibration, found, steps, stopped)


def _check(number: int | None, max_kl: float | None, patience: float) -> None:
    if number is None and max_kl is None:
        raise InputError("Say how much may go: number=, max_kl=, or both.")
    if number is not None and number < 1:
        raise InputError(f"The number of attentions to remove must be 1 or more, not {number}.")
    if max_kl is not None and not max_kl > 0:
        raise InputError(f"max_kl must be above 0 nats, not {max_kl:g}.")
    if not patience >= 1:
        raise InputError(f"patience must be 1 or more, not {patience:g}.")


def _judged(
    front: Runnable, calibration: Calibration, found: Sequence[Attention], steps: Sequence[Step], stopped: str
) -> Choice:
    """The choice, measured on the part held out."""
    names = {step.name for step in steps}
    gone = [each for each in found if each.name in names]
    layers = tuple(each.layer if each.layer is not None else place for place, each in enumerate(found))
    chosen = tuple(number for number, each in zip(layers, found, strict=True) if each.name in names)
    held_out = _divergence(front, calibration.held_out, gone) if gone and calibration.held_out else None
    return Choice(
        tuple(steps), chosen, calibration.tokens, calibration.held_out_tokens,
        held_out.kl if held_out else None, held_out.standard_error if held_out else None, stopped,
        calibration.notes,
    )  # fmt: skip


def _divergence(front: Runnable, batches: Sequence[Batch], gone: Sequence[Attention]) -> Divergence:
    meter = DivergenceMeter()
    for batch in batches:
        logits = front.logits(batch)
        (whole,) = front.run(batch, [logits])
        (less,) = run_without(front, batch, [logits], gone)
        meter.add(whole, less)
    return meter.result()


@dataclass
class _Search:
    """The rounds over one model; `held` keeps the stream before each attention, and the first logits."""

    front: Runnable
    calibration: Calibration
    found: Sequence[Attention]
    held: Activations
    progress: Progress
    gone: set[str] = field(default_factory=set)

    def run(
        self, allowed: Sequence[Attention], number: int | None, max_kl: float | None, patience: float
    ) -> tuple[list[Step], str]:
        """Rounds until a bound is met; why they stopped."""
        self._read()
        steps: list[Step] = []
        while number is None or len(steps) < number:
            left = [each for each in allowed if each.name not in self.gone]
            if not left:
                return steps, "all attentions that may go are gone"
            tried = self._round(left, len(steps) + 1)
            within = [each for each in tried if max_kl is None or each.kl <= max_kl]
            if not within:
                least = min(tried, key=lambda each: each.kl)
                return steps, f"the next one, {least.name}, would bring the KL to {least.kl:.3g} nats"
            taken, extends = self._taken(within, patience)
            steps.append(Step(taken.name, taken.kl, taken.standard_error, extends, tuple(tried)))
            self._remove(taken.name)
        return steps, f"{number} are gone, as many as were asked for"

    def _read(self) -> None:
        """Run the model once, and keep its streams and logits."""
        for index, batch in enumerate(track(self.calibration.fit, "running the model", self.progress)):
            logits = self.front.logits(batch)
            *states, whole = self.front.run(batch, [*(each.x for each in self.found), logits])
            for attention, state in zip(self.found, states, strict=True):
                self.held.put(attention.name, index, state)
            self.held.put("logits", index, whole)
            if not bool(whole.isfinite().any()) or bool(whole.isnan().any()):
                raise InputError(
                    "The model gives NaN as logits on the calibration data: check model and data."
                )

    def _round(self, left: Sequence[Attention], count: int) -> list[Candidate]:
        tried = []
        for attention in track(left, f"measuring attentions, round {count}", self.progress):
            meter = DivergenceMeter()
            for index, batch in enumerate(self.calibration.fit):
                *_, (_, logits) = self._onward(self.found.index(attention), index, batch)
                meter.add(self.held.get("logits", index), logits)
            result = meter.result()
            tried.append(Candidate(attention.name, result.kl, result.standard_error))
        return tried

    def _onward(self, place: int, index: int, batch: Batch) -> Iterator[tuple[int, torch.Tensor]]:
        """The stream before every attention behind `place`, which is left out, and the logits at the end.

        It goes from one attention to the next, so that an ONNX model is opened once in parts, and not anew
        for every set of attentions.
        """
        x = self.held.get(self.found[place].name, index)
        for at in range(place, len(self.found)):
            own = self.found[at]
            is_gone = at == place or own.name in self.gone
            known = known_at(own, x) if is_gone else {own.x: x}
            last = at + 1 == len(self.found)
            wanted = self.front.logits(batch) if last else self.found[at + 1].x
            (x,) = self.front.run(batch, [wanted], known)
            yield at + 1, x

    def _remove(self, name: str) -> None:
        """Leave an attention out for good, and keep the streams behind it as they are then."""
        place = next(place for place, each in enumerate(self.found) if each.name == name)
        for index, batch in enumerate(self.calibration.fit):
            for at, value in self._onward(place, index, batch):
                if at < len(self.found):
                    self.held.put(self.found[at].name, index, value)
        self.gone.add(name)

    def _taken(self, within: Sequence[Candidate], patience: float) -> tuple[Candidate, bool]:
        """The candidate of a round, and whether it makes a run longer."""
        by_cost: Callable[[Candidate], float] = lambda each: each.kl  # noqa: E731
        least = min(within, key=by_cost)
        longer = [each for each in within if self._extends(each.name)]
        best = min(longer, key=by_cost, default=None)
        if best is not None and best.kl <= patience * least.kl:
            return best, True
        return least, self._extends(least.name)

    def _extends(self, name: str) -> bool:
        place = next(place for place, each in enumerate(self.found) if each.name == name)
        beside = [self.found[at].name for at in (place - 1, place + 1) if 0 <= at < len(self.found)]
        return any(each in self.gone for each in beside)
