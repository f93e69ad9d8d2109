"""What the pipeline asks of timing: which groups stay, in which form, and whether the whole model gains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from fxfuse.budget import Budget
from fxfuse.passes.forms import Form
from fxfuse.passes.records import Miss
from fxfuse.passes.view import View
from fxfuse.planning.greedy import Group, Measure, split_group
from fxfuse.report import GroupReport, GroupTiming, Report, WholeTiming
from fxfuse.timing.timer import Decision, Timer
from fxfuse.timing.verdict import LEAST
from fxfuse.timing.wording import milliseconds, token_count

__all__ = ["Timing", "Whole"]

Whole: TypeAlias = Callable[[Any], "list[WholeTiming] | str"]
"""Times the original and a fused model; a text says why it cannot."""

_DROPS = 3
"""How often the worst group is dropped for the whole model's sake before all are."""


class Timing:
    """Decides by time; keeps what it decided, by the names of a group's blocks."""

    def __init__(self, timer: Timer, whole: Whole | None = None) -> None:
        self.timer = timer
        self._whole = whole
        self._decided: dict[tuple[str, ...], Decision] = {}
        self._drops = 0

    def settle(
        self, view: View, groups: list[Group], budget: Budget, measure: Measure, report: Report
    ) -> list[Form]:
        """Halve, in place, the groups that do not pay, until all do; returns the best form of each.

        A block that is left over becomes a miss of `report`, with the figures.
        """
        forms: list[Form] = []
        while len(forms) < len(groups):
            group = groups[len(forms)]
            decision = self._decide(view, group)
            if decision.form is not None:
                forms.append(decision.form)
                _note(report, decision.reason)
                continue
            if len(group.blocks) > 2:
                _note(report, f"{decision.reason}: its halves were timed")
            report.misses += split_group(groups, len(forms), budget, measure, decision.reason)
        return forms

    def told(self, groups: Sequence[GroupReport], fused: Any) -> list[GroupReport]:
        """The reports with what was timed, and the forms that were written."""
        return [
            replace(each, timing=self._timing(each.blocks), form=str(form))
            for each, form in zip(groups, fused.forms, strict=True)
        ]

    def drop(self, fused: Any, groups: list[Group], report: Report) -> bool:
        """Time the whole model; where it is slower, take the group that gains least out of `groups`."""
        if self._whole is None:
            return False
        found = self._whole(fused)
        if isinstance(found, str):
            _note(report, f"the whole model was not timed: {found}")
            return False
        report.latency = found
        worst = min(found, key=lambda each: each.ratio)
        if worst.ratio >= LEAST:
            return False
        reason = (
            f"the whole model takes {milliseconds(worst.fused_ms)} at {token_count(worst.tokens)} on "
            f"{self.timer.target.device}, unfused {milliseconds(worst.original_ms)}"
        )
        self._drops += 1
        places = [min(range(len(groups)), key=lambda index: self._gain(groups[index]))]
        if self._drops > _DROPS:
            places = list(range(len(groups)))
        for place in reversed(places):
            report.misses += [Miss(name, f"left sequential: {reason}") for name in groups.pop(place).names]
        return True

    def _decide(self, view: View, group: Group) -> Decision:
        if group.names not in self._decided:
            self._decided[group.names] = self.timer.decide(view, group.blocks)
        return self._decided[group.names]

    def _timing(self, names: tuple[str, ...]) -> GroupTiming | None:
        decision = self._decided.get(names)
        return decision.timing if decision is not None else None

    def _gain(self, group: Group) -> float:
        """Milliseconds that the group saves, over all token counts; nothing for one that was not timed."""
        timing = self._timing(group.names)
        if timing is None:
            return 0.0
        return sum(timing.sequential_ms[each] - timing.fused_ms[each] for each in timing.fused_ms)


def _note(report: Report, text: str) -> None:
    if text and text not in report.notes:
        report.notes.append(text)
