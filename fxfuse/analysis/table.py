"""An analysis as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxfuse.analysis.prediction import rank_correlations
from fxfuse.analysis.records import Analysis, AttentionScore, Segment
from fxfuse.naming import span
from fxfuse.table import columns, text

__all__ = ["draw"]

_RANKED = {
    "predicted_kl": "predicted KL",
    "drift": "drift",
    "dependency": "sum of M",
    "relative_error": "local error",
}


def draw(analysis: Analysis) -> RenderableType:
    """The tables as something rich can print."""
    parts: list[RenderableType] = [text(_headline(analysis), "bold")]
    for chain, _ in enumerate(analysis.chains):
        parts += [Text(), *_chain(analysis, chain)]
    if ranks := _ranks(analysis):
        parts += [Text(), text(ranks)]
    if analysis.attention:
        parts += [Text(), _attention(analysis.attention), text(_best(analysis.attention))]
    notes = [text(f"note: {note}", "dim") for note in analysis.notes]
    return Group(*parts, Text(), *notes, text(_ending(analysis)))


def _headline(analysis: Analysis) -> str:
    lengths = " + ".join(str(len(chain.blocks)) for chain in analysis.chains)
    if not lengths:
        return f"{analysis.model}: no chain of FFN blocks found"
    return f"{analysis.model}: {'chains' if '+' in lengths else 'a chain'} of {lengths} FFN blocks"


def _chain(analysis: Analysis, chain: int) -> list[RenderableType]:
    """What each group of a chain loses: a row for every first block, a column for every length."""
    blocks = analysis.chains[chain].blocks
    own = [each for each in analysis.segments if each.chain == chain]
    table = columns("first block", *(f"{length} blocks" for length in range(2, len(blocks) + 1)))
    for first, name in enumerate(blocks[:-1]):
        row = {each.length: _loss(each) for each in own if each.first == first}
        table.add_row(text(name), *(row.get(length, "") for length in range(2, len(blocks) + 1)))
    return [text(f"{span(blocks)}: {_what(own)}"), table]


def _what(segments: Sequence[Segment]) -> str:
    """What the figures of a chain's table are."""
    errors = [
        each.kl_error / each.kl for each in segments if each.kl and each.kl_error is not None and each.kl > 0
    ]
    if all(each.kl is None and each.predicted_kl is None for each in segments):
        return "input drift of each group, which ranks them; no KL was measured"
    told = "KL in nats at the logits of each group alone fused"
    if errors:
        told += f", ± {100 * sorted(errors)[len(errors) // 2]:.0f} % (standard error)"
    return told + ("; ~ is predicted" if any(each.kl is None for each in segments) else "")


def _loss(segment: Segment) -> str:
    if segment.kl is not None:
        return f"{segment.kl:.2g}"
    return f"{segment.drift:.2g}" if segment.predicted_kl is None else f"~{segment.predicted_kl:.2g}"


def _ranks(analysis: Analysis) -> str:
    found = rank_correlations(analysis.segments)
    told = ", ".join(f"{_RANKED[name]} {value:.3f}" for name, value in found.items())
    return f"rank correlation with the measured KL: {told}" if told else ""


def _attention(scores: Sequence[AttentionScore]) -> Table:
    table = columns("attention", "cosine", "KL without it", "±")
    for each in scores:
        kl, error = (f"{value:.2g}" if value is not None else "" for value in (each.kl, each.kl_error))
        table.add_row(text(each.name), f"{each.cosine:.4f}", kl, error)
    return table


def _best(scores: Sequence[AttentionScore]) -> str:
    measured = [each for each in scores if each.kl is not None]
    if not measured:
        best = max(scores, key=lambda each: each.cosine)
        return f"most alike before and after: {best.name}"
    best = min(measured, key=lambda each: each.kl or 0.0)
    return f"least is lost without {best.name}: {best.kl:.2g} nats"


def _ending(analysis: Analysis) -> str:
    return (
        f"{analysis.tokens:,} tokens to fit on, {analysis.held_out_tokens:,} held out, of {analysis.source} "
        f"({analysis.seconds:.1f} s)"
    )
