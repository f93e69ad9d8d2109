"""Choose attentions by what leaving them out costs: greedily, measured again after each removal.

The rule is that of `fxfuse.removal.greedy`.

The first attention stays unless told otherwise: it alone mixes the embeddings, caches take their length from
it, and checkpoint formats want it.

Nothing is rewritten to measure. The stream before every attention is kept from the model as it is so far, and
a candidate is run from its own place on. A checkpoint's folder is measured from disk instead:
`fxfuse.streaming.choosing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fxfuse.calibration import Calibration
from fxfuse.calibration.store import DEFAULT_BOUND, Activations
from fxfuse.divergence import Divergence, DivergenceMeter
from fxfuse.errors import InputError
from fxfuse.frontends.opening import Model, calibration_for, is_checkpoint, open_model
from fxfuse.frontends.protocol import Batch, Runnable
from fxfuse.passes.attention import Attention, find_attention
from fxfuse.progress import Progress, silent, track
from fxfuse.removal.greedy import PATIENCE, allowed_of, check_bounds, rounds
from fxfuse.removal.records import Candidate, Choice, Step
from fxfuse.removal.running import known_at, run_without
from fxfuse.removal.which import Which, select
from fxfuse.sessions import Provider

__all__ = ["PATIENCE", "choose", "choose_attention"]


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
        model: A torch model, an ExportedProgram, or the path of an ONNX file, of a checkpoint's folder, which
            is read block by block and need not fit into memory, or of a function that makes one.
        data: A Calibration or what `Calibration.of` takes. Chosen on the fitting part; the part held out is
            measured once at the end.
        number: Stop at so many.
        max_kl: The KL of the logits without all that went, in nats, stays at or below it.
        among: Only these may go, in any form that `remove_attention` takes.
        first: Whether the model's first attention may go too.
        patience: An attention that makes a run longer goes before another that costs less, but not less than
            a `patience`-th; 1 always takes the cheapest.
        memory: Bytes of activations that are held in memory; what comes on top goes to the disk.
        provider: For ONNX files and checkpoints: "auto", "cuda" or "cpu".
        progress: Called with a short text at every step.
        reading: What `Calibration.of` takes besides: tokenizer, context, max_tokens, batch_size, ...

    Raises:
        InputError: Neither bound is given, one makes no sense, or the model or data cannot be used.
    """
    check_bounds(number, max_kl, patience)
    calibration = calibration_for(model, data, progress, **reading)
    wanted: dict[str, Any] = {
        "number": number, "max_kl": max_kl, "among": among, "first": first, "patience": patience,
        "memory": memory, "progress": progress,
    }  # fmt: skip
    if is_checkpoint(model):
        return _from_disk(Path(model), calibration, provider, wanted)  # type: ignore[arg-type]
    with open_model(model, calibration, provider) as front:
        return choose(front, calibration, **wanted)


def _from_disk(folder: Path, calibration: Calibration, provider: Provider, wanted: dict[str, Any]) -> Choice:
    """The choice in a checkpoint, of which one block at a time is in memory."""
    from fxfuse.checkpoints.opening import open_checkpoint
    from fxfuse.streaming.choosing import choose_in_checkpoint

    return choose_in_checkpoint(open_checkpoint(folder), calibration, provider=provider, **wanted)


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
    check_bounds(number, max_kl, patience)
    found, misses = find_attention(front.view)
    meant = found if among is None else select(among, found, misses)
    names = [each.name for each in found]
    allowed = allowed_of(names, [each.name for each in meant], first=first)
    with Activations(memory) as held:
        search = _Search(front, calibration, found, held, progress)
        search.read()
        steps, stopped = rounds(search, names, allowed, number, max_kl, patience)
    return _judged(front, calibration, found, steps, stopped)


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

    def read(self) -> None:
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

    def measure(self, left: Sequence[str], count: int) -> list[Candidate]:
        """See `Measured`."""
        tried = []
        for name in track(left, f"measuring attentions, round {count}", self.progress):
            meter = DivergenceMeter()
            for index, batch in enumerate(self.calibration.fit):
                *_, (_, logits) = self._onward(self._place(name), index, batch)
                meter.add(self.held.get("logits", index), logits)
            result = meter.result()
            tried.append(Candidate(name, result.kl, result.standard_error))
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

    def remove(self, name: str) -> None:
        """See `Measured`; the streams behind it are kept as they are then."""
        place = self._place(name)
        for index, batch in enumerate(self.calibration.fit):
            for at, value in self._onward(place, index, batch):
                if at < len(self.found):
                    self.held.put(self.found[at].name, index, value)
        self.gone.add(name)

    def _place(self, name: str) -> int:
        return next(place for place, each in enumerate(self.found) if each.name == name)
