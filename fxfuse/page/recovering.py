"""The tables of recovery: what was tried on each group, what was kept, and how much loss it took back."""

from __future__ import annotations

from collections.abc import Sequence

from fxfuse.naming import span
from fxfuse.page.numbers import DASH, count, figure, known, percent, with_error
from fxfuse.page.tables import Column, details, paragraph, table
from fxfuse.recovery.records import GroupRecovery, Recovered

__all__ = ["recovery_tables"]


def recovery_tables(found: Sequence[GroupRecovery] | Recovered) -> str:
    """One row for each group, the sum of all where it was measured, and every trial behind it."""
    groups = found.groups if isinstance(found, Recovered) else found
    rows = [_row(group) for group in groups]
    columns = [Column("group", False), Column("kept", False), Column("error before"), Column("error after")]
    columns += [Column("KL before"), Column("KL after"), Column("KL taken back"), Column("tokens")]
    told = _whole(found) if isinstance(found, Recovered) else ""
    trials = [trial for group in groups for trial in _trials(group)]
    heads = [
        Column("group", False),
        Column("form", False),
        Column("penalty"),
        Column("error"),
        Column("", False),
    ]
    behind = details("Everything that was tried", table(heads, trials, form="scroll")) if trials else ""
    reasons = "".join(
        paragraph(f"{span(each.blocks)}: {each.reason}", "muted") for each in groups if each.reason
    )
    return told + table(columns, rows) + _EXPLAINED + reasons + behind


_EXPLAINED = paragraph(
    "Error: mean over held-out tokens of |fused − sequential|² / |sequential|² of the stream after the "
    "group. KL: nats/token with the group fused, the groups before it as kept, and all behind it sequential.",
    "muted",
)


def _row(group: GroupRecovery) -> tuple[str, ...]:
    back = DASH
    if group.kl_before and group.kl_after is not None and known(group.kl_before) and known(group.kl_after):
        back = percent(1 - group.kl_after / group.kl_before)
    errors = figure(group.error_before), figure(group.error_after)
    kls = figure(group.kl_before), figure(group.kl_after)
    return span(group.blocks), group.kept, *errors, *kls, back, count(group.tokens)


def _trials(group: GroupRecovery) -> list[tuple[str, ...]]:
    return [
        (
            span(group.blocks),
            trial.name,
            figure(trial.penalty, 1),
            with_error(trial.error, trial.margin),
            "kept" if trial.name == group.kept else "",
        )
        for trial in group.trials
    ]


def _whole(found: Recovered) -> str:
    if found.kl_before is None or found.kl_after is None:
        return ""
    before, after = found.kl_before, found.kl_after
    one = with_error(before.kl, before.standard_error)
    other = with_error(after.kl, after.standard_error)
    tokens = count(after.tokens)
    return paragraph(
        f"All groups together: KL {one} before and {other} nats/token after, on {tokens} tokens."
    )
