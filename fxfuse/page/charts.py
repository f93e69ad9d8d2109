"""The charts of a page: each drawn in both widths, with its caption and the table of its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fxfuse.analysis.ranking import spearman
from fxfuse.analysis.records import Analysis, AttentionScore, Dependency, Segment
from fxfuse.naming import span
from fxfuse.page.attention import draw_attention
from fxfuse.page.front import draw_front, has_latency
from fxfuse.page.heatmap import draw_heatmap
from fxfuse.page.loss import draw_loss, names_of
from fxfuse.page.names import lengths_text, numbers_of
from fxfuse.page.numbers import DASH, count, figure, known, with_error
from fxfuse.page.records import Chart
from fxfuse.page.steps import Stream
from fxfuse.page.stream import draw_stream
from fxfuse.page.tables import Column, table
from fxfuse.planning.records import Plan

__all__ = ["attention_chart", "front_chart", "heatmap_chart", "loss_chart", "stream_chart"]


def stream_chart(stream: Stream) -> Chart:
    """The residual stream before and after."""
    depths = Stream.depth(stream.before), Stream.depth(stream.after)
    kinds = {step.kind for step in (*stream.before, *stream.after)}
    caption = (
        "Each row is one update of the residual stream, from the first at the top to the last. Boxes are "
        "FFNs, as wide as their intermediate size, on one scale in both columns"
        + (", pills are attention" if "attention" in kinds else "")
        + (", dashed outlines are attention that was removed" if "gap" in kinds else "")
        + ". "
        + (
            f"Fusing turns {depths[0]} updates in a row into {depths[1]}."
            if stream.links
            else "Nothing is fused."
        )
    )
    becomes = {
        place: f"one FFN of {count(stream.after[link.after].width)}"
        for link in stream.links
        for place in range(link.first, link.last + 1)
    }
    rows = [
        (
            step.name,
            step.kind if step.kind != "gap" else "removed",
            count(step.width),
            becomes.get(place, DASH),
        )
        for place, step in enumerate(stream.before)
    ]
    columns = [Column("update", False), Column("kind", False), Column("intermediate size"), Column("becomes")]
    return Chart(
        "stream",
        "The residual stream, before and after",
        draw_stream(stream),
        draw_stream(stream, True),
        caption,
        table(columns, rows, form="scroll"),
    )


def heatmap_chart(found: Dependency, groups: Sequence[Sequence[str]]) -> Chart:
    """The dependency matrix."""
    caption = (
        "M of row i and column j is 1 − cos of what update j adds to the stream, with update i and without "
        "it: updates of strongly coloured cells lean on each other and should not run side by side "
        "(FFN Fusion, arXiv 2503.18908). "
        "Circles on the diagonal are attention, squares FFNs."
    )
    caption += " Each outline is a group: groups with a smaller sum inside lose less." if groups else ""
    size = len(found.names)
    kinds = ({"attention": "attn", "ffn": "FFN"}.get(kind, kind) for kind in found.kinds)
    heads = [f"{number} {kind}" for number, kind in zip(numbers_of(found.names), kinds, strict=True)]
    columns = [Column("left out", False), *map(Column, heads[1:])]
    rows = [
        (name, *(figure(found.matrix[i][j], 2) if j > i else "" for j in range(1, size)))
        for i, name in enumerate(found.names[:-1])
    ]
    figures = f'<div class="matrix">{table(columns, rows, form="scroll")}</div>'
    wide, narrow = (draw_heatmap(found, groups, narrow) for narrow in (False, True))
    return Chart("dependency", "Which updates lean on each other", wide, narrow, caption, figures)


def attention_chart(scores: Sequence[AttentionScore]) -> Chart:
    """The importance of each attention."""
    measured = any(known(score.kl) for score in scores)
    caption = (
        "Low points are attentions that the model misses little"
        + (
            ", measured at the logits with one left out at a time; bars are standard errors"
            if measured
            else ""
        )
        + ". The cosine (LLM-Drop, arXiv 2406.15786) tells how little an attention turns the stream; it is a "
        "weak proxy of loss by itself."
    )
    rows = [(s.name, figure(s.cosine, 5), with_error(s.kl, s.kl_error)) for s in scores]
    columns = [Column("attention", False), Column("cosine"), Column("KL without it, nats/token")]
    wide, narrow = (draw_attention(scores, narrow) for narrow in (False, True))
    return Chart(
        "attention",
        "What each attention is worth",
        wide,
        narrow,
        caption,
        table(columns, rows, form="scroll"),
    )


def loss_chart(analysis: Analysis, chosen: Sequence[Sequence[str]]) -> Chart:
    """Loss against group length."""
    pairs = [(s.kl, s.predicted_kl) for s in analysis.segments if s.length > 1]
    both = [(a, b) for a, b in pairs if a is not None and b is not None and known(a) and known(b)]
    rank = spearman([a for a, _ in both], [b for _, b in both]) if both else math.nan
    caption = (
        "Every run of consecutive FFNs as one group, alone, without recovery. Circles were measured at the "
        "logits on held-out data, with bars of one standard error; the diamond right of each is its "
        "prediction."
    )
    if known(rank):
        caption += f" Over {len(both)} segments both rank alike: Spearman {rank:.3f}."
    caption += " Rings mark the chosen groups." if chosen else ""
    rows = [_segment_row(s, analysis) for s in analysis.segments if s.length > 1]
    columns = [Column("blocks", False), Column("FFNs"), Column("KL, nats/token"), Column("predicted KL")]
    columns += [Column("SQNR, dB"), Column("drift"), Column("sum of M")]
    wide, narrow = (draw_loss(analysis.segments, analysis.chains, chosen, narrow) for narrow in (False, True))
    return Chart(
        "loss",
        "What a group costs, by its length",
        wide,
        narrow,
        caption,
        table(columns, rows, form="scroll"),
    )


def _segment_row(s: Segment, analysis: Analysis) -> tuple[str, ...]:
    names = span(names_of(s, analysis.chains)) or f"chain {s.chain + 1}, {s.first + 1} to {s.last + 1}"
    local = figure(s.sqnr_db), figure(s.drift), figure(s.dependency)
    return names, str(s.length), with_error(s.kl, s.kl_error), figure(s.predicted_kl), *local


def front_chart(plan: Plan) -> Chart:
    """The Pareto front."""
    budget = plan.budget.get("max_kl")
    limit = float(budget) if isinstance(budget, (int, float)) and not isinstance(budget, bool) else None
    measure = "latency" if has_latency(plan.front) else "depth"
    caption = (
        f"The least loss for each {measure} that groups can reach, each point named by the lengths of its "
        "groups in order (1 is an FFN left as it is, 5×1 five of them). Circles were measured with all "
        "groups fused at once."
    )
    rows = [
        (
            lengths_text(p.lengths),
            str(p.depth),
            with_error(p.kl, p.kl_error),
            figure(p.predicted_kl),
            figure(p.latency_ms),
            "chosen" if p.chosen else "",
        )
        for p in plan.front
    ]
    columns = [Column("groups", False), Column("FFNs in a row"), Column("KL, nats/token")]
    columns += [Column("predicted KL"), Column("latency, ms"), Column("", False)]
    marked = [place for place, p in enumerate(plan.front) if p.chosen]
    wide, narrow = (draw_front(plan.front, limit, narrow) for narrow in (False, True))
    return Chart(
        "front", f"Loss against {measure}", wide, narrow, caption, table(columns, rows, marked, form="scroll")
    )
