"""The analysis of a checkpoint that does not fit into memory: the same record as that of the loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from fxfuse.analysis.api import KL_TOKENS
from fxfuse.analysis.prediction import predict
from fxfuse.analysis.records import Analysis, AttentionScore, Dependency, Segment
from fxfuse.analysis.segments import Choice, figures, with_dependency
from fxfuse.analysis.states import spread
from fxfuse.calibration import Calibration
from fxfuse.calibration.store import DEFAULT_BOUND, Activations
from fxfuse.calibration.vocabulary import check_vocabulary
from fxfuse.checkpoints.records import Checkpoint
from fxfuse.progress import Progress, silent
from fxfuse.sessions import Provider
from fxfuse.streaming.analyst import Analyst
from fxfuse.streaming.model import DiskModel, check_batch, device_for
from fxfuse.streaming.sweep import Place, sweep, ticks, together

__all__ = ["measure_checkpoint", "open_model", "places_of"]


def open_model(checkpoint: Checkpoint, calibration: Calibration, provider: Provider = "auto") -> DiskModel:
    """The checkpoint's decoder, once the data are known to fit it.

    Raises:
        InputError: They hold something else than token ids and masks, or tokens outside the vocabulary, or
            there is no such device.
    """
    for batch in calibration.batches:
        check_batch(batch)
    model = DiskModel(checkpoint, device_for(provider))
    check_vocabulary(calibration, model.vocab_size)
    return model


def places_of(calibration: Calibration, kl_tokens: int | None, *, held_out: bool) -> list[Place]:
    """All batches to fit on, and those held out that single changes are measured on."""
    counts = set(spread(calibration.fit, kl_tokens))
    found = [Place(at, "fit", batch, at in counts) for at, batch in enumerate(calibration.fit)]
    if held_out:
        judged = [calibration.held_out[at] for at in spread(calibration.held_out, kl_tokens)]
        found += [Place(at, "held_out", batch) for at, batch in enumerate(judged)]
    return found


def measure_checkpoint(
    checkpoint: Checkpoint,
    calibration: Calibration,
    *,
    segments: Choice = "auto",
    dependency: bool = True,
    attention: bool = True,
    kl_tokens: int | None = KL_TOKENS,
    memory: int = DEFAULT_BOUND,
    provider: Provider = "auto",
    progress: Progress = silent,
) -> Analysis:
    """`fxfuse.analyze` for a checkpoint: one update's weights in memory at a time, each read once in a pass.

    Args:
        checkpoint: What is measured, in the type that its config names.
        calibration: The data: a part to fit on, and one held out.
        segments: Which segments' KL is measured at the logits.
        dependency: Whether the dependency matrix is measured.
        attention: Whether the KL of leaving out each attention is measured.
        kl_tokens: About how many tokens single changes are measured on; all for None.
        memory: Bytes of streams held in memory beside the weights and the batch at work.
        provider: "cuda", "cpu", or "auto" for the first of them that is there.
        progress: Told of every update.

    Raises:
        InputError: The data do not fit the model, or it gives NaN on them.
    """
    model = open_model(checkpoint, calibration, provider)
    with Activations(memory) as store:
        analyst = Analyst(model, store, segments, dependency=dependency, attention=attention)
        judges = bool(analyst.kls or analyst.without)
        places = places_of(calibration, kl_tokens, held_out=judges)
        passes = together(model, places, analyst.most_streams, store)
        tell = ticks(len(passes) * len(model.updates), "measuring block by block", progress)
        for part in passes:
            to_logits = any(place.part == "held_out" for place in part)
            sweep(model, part, analyst, stop=None if to_logits else len(model.updates), tell=tell)
            analyst.streams.forget(part)
        found = _analysis(model, analyst, calibration)
        found.notes += [*([store.note] if store.note else []), *_passes(passes)]
    return found


def _analysis(model: DiskModel, analyst: Analyst, calibration: Calibration) -> Analysis:
    """What was gathered, as a record."""
    dependency = _dependency(model, analyst)
    found = Analysis(
        model="",
        id=model.id,
        source=calibration.source,
        tokens=calibration.tokens,
        held_out_tokens=calibration.held_out_tokens,
        seed=calibration.seed,
        chains=[model.facts(chain) for chain in model.chains],
        updates=[(each.kind, each.name) for each in model.updates],
        attention=[_score(model, analyst, at) for at in analyst.attentions],
        dependency=dependency,
        notes=list(calibration.notes),
    )
    found.segments = predict([_segment(analyst, span) for span in analyst.errors])
    if dependency is not None:
        found.segments = [
            with_dependency(each, found.chains[each.chain], dependency) for each in found.segments
        ]
    return found


def _segment(analyst: Analyst, span: tuple[int, int, int]) -> Segment:
    chain, first, last = span
    error = analyst.errors[span].result()
    drift = analyst.drifts[chain].drift(first, last)
    kl, kl_error = figures(analyst.kls[span].result() if span in analyst.kls else None)
    return Segment(
        chain, first, last, drift, error.sqnr_db, error.relative_error, kl=kl, kl_error=kl_error,
        cosine_distance=max(0.0, 1.0 - error.cosine),
    )  # fmt: skip


def _score(model: DiskModel, analyst: Analyst, at: int) -> AttentionScore:
    kl = analyst.without[at].result() if at in analyst.without else None
    return AttentionScore(model.updates[at].name, analyst.cosines[at].result(), *figures(kl))


def _dependency(model: DiskModel, analyst: Analyst) -> Dependency | None:
    if not analyst.dependencies:
        return None
    size = len(model.updates)
    rows = [[0.0] * size for _ in range(size)]
    for i, j in combinations(range(size), 2):
        rows[i][j] = max(0.0, 1 - analyst.dependencies[i, j].result())
    names, kinds = (tuple(getattr(each, what) for each in model.updates) for what in ("name", "kind"))
    return Dependency(names, kinds, tuple(map(tuple, rows)))


def _passes(passes: Sequence[Sequence[Place]]) -> list[str]:
    if len(passes) < 2:
        return []
    return [f"the checkpoint was read {len(passes)} times, so that the streams of a pass fit into memory"]
