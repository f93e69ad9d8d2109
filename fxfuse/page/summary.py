"""What a reader learns first: one sentence, and the few figures that matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxfuse.analysis.records import Analysis
from fxfuse.page.names import lengths_text
from fxfuse.page.numbers import count, figure, known, percent, with_error
from fxfuse.page.records import Stage
from fxfuse.page.steps import Stream
from fxfuse.page.svg import escape, shorten
from fxfuse.planning.records import Plan
from fxfuse.recovery.records import GroupRecovery, Recovered
from fxfuse.report import Report

__all__ = ["Parts", "lead", "tiles", "title_of"]


@dataclass(frozen=True)
class Parts:
    """All that a page was given."""

    analysis: Analysis | None = None
    plan: Plan | None = None
    report: Report | None = None
    recovery: Recovered | tuple[GroupRecovery, ...] | None = None
    stages: tuple[Stage, ...] = ()

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The names of the blocks of every group, as fused, else as planned."""
        if self.report is not None and self.report.groups:
            return [group.blocks for group in self.report.groups]
        planned = self.plan.groups if self.plan is not None else ()
        return [group.blocks for group in planned if len(group.blocks) > 1]

    @property
    def recovered(self) -> Recovered | tuple[GroupRecovery, ...]:
        """What recovery came to, by itself or in the report's groups."""
        groups = self.report.groups if self.report is not None else []
        return self.recovery or tuple(group.recovery for group in groups if group.recovery is not None)

    @property
    def is_fused(self) -> bool:
        """Whether the groups were written, not only planned."""
        return self.report is not None and bool(self.report.groups)


def title_of(parts: Parts) -> str:
    """The model's name, as the first of the parts has it; of a path its last part."""
    named = (parts.report, parts.plan, parts.analysis)
    names = (each.model.rstrip("/").split("/")[-1] for each in named if each is not None)
    return next((name for name in names if name), "FFN fusion")


def lead(parts: Parts) -> str:
    """One sentence about what was done; a second one about the loss."""
    groups = parts.groups
    if not groups:
        return "Nothing is fused in this report."
    blocks, wide = sum(map(len, groups)), len(groups)
    told = f"{blocks} FFNs that stood in a row {'run' if parts.is_fused else 'would run'} as {wide} wide "
    told += "one" if wide == 1 else "ones"
    kl, error = _kl(parts)
    if not known(kl):
        predicted = parts.plan.predicted_kl if parts.plan is not None else None
        cost = (
            f", at a predicted KL divergence of {figure(predicted)} nats per token"
            if known(predicted)
            else ""
        )
        return f"{told}{cost}."
    return f"{told}, at a KL divergence of {with_error(kl, error)} nats per token from the original model."


def tiles(parts: Parts, stream: Stream | None) -> str:
    """The figures side by side; what was not measured has no tile."""
    found = [*_depth(parts, stream), *_loss(parts), *_latency(parts.stages), *_data(parts)]
    drawn = (
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd>{escape(note)}</dd></div>'
        for name, value, note in found
    )
    return f'<dl class="tiles">{"".join(drawn)}</dl>' if found else ""


_Tile = tuple[str, str, str]


def _kl(parts: Parts) -> tuple[float | None, float | None]:
    """The measured KL of all groups together: what was fused says, else the plan."""
    if parts.report is not None and known(parts.report.end_to_end.get("kl")):
        return parts.report.end_to_end["kl"], parts.report.end_to_end.get("kl_error")
    return (parts.plan.kl, parts.plan.kl_error) if parts.plan is not None else (None, None)


def _depth(parts: Parts, stream: Stream | None) -> list[_Tile]:
    if stream is None or not stream.links:
        return []
    before, after = Stream.depth(stream.before), Stream.depth(stream.after)
    lengths = shorten(lengths_text([[len(group) for group in parts.groups]]), 22)
    return [("updates in a row", f"{before} → {after}", f"groups of {lengths}")]


def _loss(parts: Parts) -> list[_Tile]:
    kl, error = _kl(parts)
    found: list[_Tile] = [("KL to the original", with_error(kl, error), "nats/token")] if known(kl) else []
    whole = parts.report.end_to_end if parts.report is not None else {}
    if known(whole.get("top1_agreement")):
        tokens = whole.get("tokens")
        note = f"on {count(tokens)} tokens" if tokens else "of the next token"
        found.append(("same top token", percent(whole["top1_agreement"]), note))
    return found


def _latency(stages: Sequence[Stage]) -> list[_Tile]:
    timed = [stage for stage in stages if known(stage.latency_ms) and stage.latency_ms]
    if len(timed) < 2:
        return []
    first, last = timed[0].latency_ms or 0.0, timed[-1].latency_ms or 1.0
    times = f"{figure(first / last)} times as fast"
    return [("latency p50, ms", f"{figure(first)} → {figure(last)}", times)]


def _data(parts: Parts) -> list[_Tile]:
    if parts.analysis is None:
        return []
    held_out, tokens = parts.analysis.held_out_tokens, parts.analysis.tokens
    return [("tokens held out", count(held_out), f"{count(tokens)} to fit")]
