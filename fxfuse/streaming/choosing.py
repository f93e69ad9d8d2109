r"""Which attentions of a checkpoint go, measured from disk: all candidates of a round in one pass.

    whole   x ------------------------------------------> logits
    less    |-- from the first attention that is gone --->          all that went are left out
            |   |-- from a candidate on ----------------> logits,   and their KL to those of the whole
            |   |-- ...

The rule is `fxfuse.removal.greedy`'s, so the choice is that of the loaded model, to rounding. A round reads
the files once, or as often as its streams ask for.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import torch

from fxfuse.analysis.states import not_finite
from fxfuse.calibration import Calibration
from fxfuse.calibration.store import DEFAULT_BOUND, Activations
from fxfuse.checkpoints.records import Checkpoint
from fxfuse.divergence import Divergence, DivergenceMeter
from fxfuse.errors import InputError
from fxfuse.progress import Progress, silent
from fxfuse.removal.greedy import PATIENCE, allowed_of, check_bounds, rounds
from fxfuse.removal.records import Candidate, Choice
from fxfuse.removal.which import Which, select
from fxfuse.sessions import Provider
from fxfuse.streaming.api import open_model, places_of
from fxfuse.streaming.model import Branch, DiskModel
from fxfuse.streaming.streams import Key, Streams, compare
from fxfuse.streaming.sweep import Place, sweep, ticks, together

__all__ = ["choose_in_checkpoint"]

_LESS: Key = ("less",)


def choose_in_checkpoint(
    checkpoint: Checkpoint,
    calibration: Calibration,
    *,
    number: int | None = None,
    max_kl: float | None = None,
    among: Which | None = None,
    first: bool = False,
    patience: float = PATIENCE,
    memory: int = DEFAULT_BOUND,
    provider: Provider = "auto",
    progress: Progress = silent,
) -> Choice:
    """`fxfuse.choose_attention` for a checkpoint: one update's weights in memory at a time.

    Raises:
        InputError: As there, or the data hold something else than token ids and masks.
    """
    check_bounds(number, max_kl, patience)
    model = open_model(checkpoint, calibration, provider)
    attentions = [update for update in model.updates if update.kind == "attention"]
    names = [each.name for each in attentions]
    meant = attentions if among is None else select(among, attentions, [])
    allowed = allowed_of(names, [each.name for each in meant], first=first)
    with Activations(memory) as store:
        search = _Search(model, calibration, store, progress)
        steps, stopped = rounds(search, names, allowed, number, max_kl, patience)
        gone = {step.name for step in steps}
        held_out = search.held_out() if gone and calibration.held_out else None
        notes = (*calibration.notes, *([store.note] if store.note else []))
    return Choice(
        tuple(steps), tuple(each.layer for each in attentions if each.name in gone), calibration.tokens,
        calibration.held_out_tokens, held_out.kl if held_out else None,
        held_out.standard_error if held_out else None, stopped, notes,
    )  # fmt: skip


class _Search:
    """The rounds over one checkpoint; `gone` are places among the model's updates."""

    def __init__(
        self, model: DiskModel, calibration: Calibration, store: Activations, progress: Progress
    ) -> None:
        self.model, self.store, self.progress = model, store, progress
        self.places = places_of(calibration, None, held_out=True)
        self.numbers = {update.name: at for at, update in enumerate(model.updates)}
        self.gone: set[int] = set()

    def measure(self, left: Sequence[str], count: int) -> list[Candidate]:
        """See `Measured`."""
        tried = _Tried(self.model, self.store, self.gone, [self.numbers[name] for name in left])
        self._run(tried, "fit", f"measuring attentions, round {count}")
        results = [meter.result() for meter in tried.meters.values()]
        return [
            Candidate(name, each.kl, each.standard_error) for name, each in zip(left, results, strict=True)
        ]

    def remove(self, name: str) -> None:
        """See `Measured`."""
        self.gone.add(self.numbers[name])

    def held_out(self) -> Divergence:
        """Without all that are gone, on the data held out."""
        tried = _Tried(self.model, self.store, self.gone, [])
        tried.meters[_LESS] = DivergenceMeter()
        self._run(tried, "held_out", "measuring what is left")
        return tried.meters[_LESS].result()

    def _run(self, tried: _Tried, part: str, told: str) -> None:
        places = [place for place in self.places if place.part == part]
        passes = together(self.model, places, lambda _: 2 + len(tried.candidates), self.store)
        tell = ticks(len(passes) * len(self.model.updates), told, self.progress)
        for each in passes:
            sweep(self.model, each, tried, tell=tell)
            tried.streams.forget(each)


class _Tried:
    """One round: what is `gone` stays out, and every candidate is left out on top of it."""

    def __init__(
        self, model: DiskModel, store: Activations, gone: Collection[int], candidates: Sequence[int]
    ) -> None:
        self.model, self.gone, self.candidates = model, gone, candidates
        self.streams = Streams(store, model.device)
        self.meters: dict[Hashable, DivergenceMeter] = {
            ("without", number): DivergenceMeter() for number in candidates
        }

    def begin(self, place: Place, x: torch.Tensor) -> None:
        """See `Visitor`."""
        self.streams.put("x", place, x)

    def update(self, number: int, place: Place, branch: Branch) -> None:
        """See `Visitor`."""
        x = self.streams.get("x", place)
        changed = self.streams.changed(place)
        less = self.streams.get(_LESS, place) if _LESS in changed else x
        out = x + branch(x)
        if not bool(torch.isfinite(out).all()):
            raise InputError(not_finite(self.model.updates[number].name))
        if number not in self.gone:
            for key in changed:
                y = self.streams.get(key, place)
                self.streams.put(key, place, y + branch(y))
        elif _LESS not in changed:
            self.streams.leave(_LESS, place, x)
        if number in self.candidates:
            self.streams.leave(("without", number), place, less)
        self.streams.put("x", place, out)

    def after(self, number: int) -> None:
        """See `Visitor`."""

    def end(self, place: Place, logits: Branch) -> None:
        """See `Visitor`."""
        compare(self.streams, place, logits, self.meters)
