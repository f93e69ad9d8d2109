"""Measure a model before anything is changed: which groups would cost what, and which attention matters."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

from fxfuse.analysis.dependency import measure_dependency
from fxfuse.analysis.identity import chain_facts, model_id
from fxfuse.analysis.measure import Measurements
from fxfuse.analysis.prediction import predict
from fxfuse.analysis.records import Analysis, AttentionScore, Dependency, Segment
from fxfuse.analysis.segments import Choice, figures, measure_segments, with_dependency
from fxfuse.analysis.states import slices
from fxfuse.calibration import Calibration
from fxfuse.calibration.store import DEFAULT_BOUND
from fxfuse.errors import InputError
from fxfuse.frontends.opening import Model, calibration_for, is_checkpoint, model_name, open_model
from fxfuse.frontends.protocol import Runnable
from fxfuse.passes.attention import stream_updates
from fxfuse.progress import Progress, silent
from fxfuse.sessions import Provider
from fxfuse.versions import versions

__all__ = ["KL_TOKENS", "analyze", "measure"]

KL_TOKENS = 16_384
"""Tokens that each figure is measured on which takes a run of its own."""


def analyze(
    model: Model,
    data: Any,
    *,
    segments: Choice | None = "auto",
    dependency: bool = True,
    attention: bool = True,
    kl_tokens: int | None = KL_TOKENS,
    memory: int = DEFAULT_BOUND,
    provider: Provider = "auto",
    progress: Progress = silent,
    **reading: Any,
) -> Analysis:
    """Measure drift, local errors, KL, the dependency matrix and the importance of attention.

    Args:
        model: A torch model (nn.Module, ExportedProgram, GraphModule), an ONNX or .pt2 file, the folder of a
            Hugging Face checkpoint, which is read block by block and need not fit into memory, or
            "module:function" for a function that returns a torch model and its example inputs.
        data: What `Calibration.of` takes: token ids, batches, text, or their files.
        segments: Which segments' KL is measured at the logits: "all", "pairs" (those of two blocks, and each
            whole chain), "none" (or None), or "auto": all of chains of up to 12 blocks, pairs of longer ones.
            The others' is predicted.
        dependency: Whether the dependency matrix is measured, with one run for every update of the stream.
        attention: Whether the KL of leaving out each attention is measured.
        kl_tokens: About how many tokens the KL of a segment, that of leaving something out, and the
            dependencies are measured on; all for None.
        memory: Bytes of activations held in memory; what comes on top goes to a temporary file.
        provider: "auto", "cuda" or "cpu", for ONNX files and checkpoints.
        progress: Called with a short text at every step.
        reading: What `Calibration.of` takes besides: tokenizer, context, max_tokens, batch_size, held_out,
            seed.

    Returns:
        The analysis; its `to_json` is what `fxfuse plan` reads.

    Raises:
        InputError: The model, the data or an option cannot be used, or the model gives NaN on the data.
    """
    started = time.perf_counter()
    choice = _choice(segments)
    if kl_tokens is not None and kl_tokens < 1:
        raise InputError(f"kl_tokens must be 1 or more, or None for all, not {kl_tokens}.")
    progress("reading the data")
    calibration = calibration_for(model, data, progress, **reading)
    progress("reading the model")
    wanted: dict[str, Any] = {
        "segments": choice, "dependency": dependency, "attention": attention, "kl_tokens": kl_tokens,
        "memory": memory, "progress": progress,
    }  # fmt: skip
    if is_checkpoint(model):
        found = _from_disk(Path(model), calibration, provider, wanted)  # type: ignore[arg-type]
    else:
        with open_model(model, calibration, provider) as front:
            found = measure(front, calibration, **wanted)
    found.model, found.versions = model_name(model), versions()
    found.seconds = round(time.perf_counter() - started, 3)
    return found


def measure(
    front: Runnable,
    calibration: Calibration,
    *,
    segments: Choice = "auto",
    dependency: bool = True,
    attention: bool = True,
    kl_tokens: int | None = KL_TOKENS,
    memory: int = DEFAULT_BOUND,
    progress: Progress = silent,
) -> Analysis:
    """`analyze` for a model that is open already."""
    with Measurements(front, calibration, memory=memory, kl_tokens=kl_tokens, progress=progress) as taken:
        return _Analyst(taken, segments, dependency, attention).analysis()


def _from_disk(
    folder: Path, calibration: Calibration, provider: Provider, wanted: dict[str, Any]
) -> Analysis:
    """The analysis of a checkpoint, of which one block at a time is in memory."""
    from fxfuse.checkpoints.opening import open_checkpoint
    from fxfuse.streaming.api import measure_checkpoint

    return measure_checkpoint(open_checkpoint(folder), calibration, provider=provider, **wanted)


def _choice(segments: str | None) -> Choice:
    """Which segments are measured.

    Raises:
        InputError: There is no such choice.
    """
    if segments is None:
        return "none"
    if segments not in get_args(Choice):
        raise InputError(f"segments must be one of {', '.join(get_args(Choice))}, not {segments!r}.")
    return segments  # type: ignore[return-value]


class _Analyst:
    """Takes the measurements that are asked for, and puts them together."""

    def __init__(self, taken: Measurements, choice: Choice, dependency: bool, attention: bool) -> None:
        self.taken, self.choice = taken, choice
        self.dependency, self.attention = dependency, attention
        self.updates = stream_updates(taken.front.view)
        self.notes: list[str] = []

    def analysis(self) -> Analysis:
        """Everything that is asked for."""
        taken, data = self.taken, self.taken.calibration
        _ = taken.fit  # data that do not fit the model are told before logits that are missing
        self._look_for_logits()
        found = Analysis(
            model="",
            id=model_id(taken.front, taken.found),
            source=data.source,
            tokens=data.tokens,
            held_out_tokens=data.held_out_tokens,
            seed=data.seed,
            chains=[chain_facts(taken.front.view, chain) for chain in taken.chains],
            updates=[(each.kind, each.name) for each in self.updates],
            attention=self._attention(),
            dependency=self._dependencies() if self.dependency else None,
        )
        found.segments = self._segments(found.dependency)
        found.notes = [*data.notes, *self.notes, *([taken.store.note] if taken.store.note else [])]
        return found

    def _look_for_logits(self) -> None:
        """Where the model has none, leave out all that is measured on them."""
        if self.choice == "none" and not self.attention:
            return
        try:
            _ = self.taken.logits
        except InputError as error:
            self.choice, self.attention = "none", False
            self.notes.append(f"no KL was measured: {str(error)[0].lower()}{str(error)[1:].split(':')[0]}")

    def _attention(self) -> list[AttentionScore]:
        taken = self.taken
        kls = taken.left_out_kls(taken.attention) if self.attention else [None] * len(taken.attention)
        return [
            AttentionScore(each.name, cosine, *figures(kl))
            for each, cosine, kl in zip(taken.attention, taken.cosines(), kls, strict=True)
        ]

    def _dependencies(self) -> Dependency | None:
        if len(self.updates) < 2:
            return None
        taken = self.taken
        hidden = max((block.hidden_size for block in taken.blocks), default=1)
        batches = [taken.fit.batches[place] for place in taken.fit.places(taken.kl_tokens)]
        batches = slices(batches, taken.memory // (4 * hidden * 3 * len(self.updates)))
        return measure_dependency(taken.front, self.updates, batches, taken.progress)

    def _segments(self, dependency: Dependency | None) -> list[Segment]:
        found = predict(measure_segments(self.taken, self.choice))
        if dependency is None:
            return found
        facts = [chain_facts(self.taken.front.view, chain) for chain in self.taken.chains]
        return [with_dependency(each, facts[each.chain], dependency) for each in found]
