"""The residual stream as a list of steps, before and after fusing, from whatever was given.

A step is one update of the stream. Where a model has attention but two FFNs follow each other, attention was
removed between them: a gap. After fusing, a group is one step, and attention between the blocks of one chain
is a gap too, since nothing stands between the blocks of a chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fxfuse.analysis.records import Analysis
from fxfuse.planning.records import Plan
from fxfuse.report import Report

__all__ = ["Link", "Step", "Stream", "stream_of"]


@dataclass(frozen=True)
class Step:
    """kind: "attention", "ffn", "group", "gap" or "other"; width: the FFN's intermediate size, if known."""

    kind: str
    name: str
    width: int | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Link:
    """Steps first..last before fusing are the step `after` of the fused model."""

    first: int
    last: int
    after: int


@dataclass(frozen=True)
class Stream:
    """Both lists of steps, and which run of the first became which step of the second."""

    before: tuple[Step, ...]
    after: tuple[Step, ...]
    links: tuple[Link, ...]

    @staticmethod
    def depth(steps: Sequence[Step]) -> int:
        """How many updates follow each other."""
        return sum(step.kind != "gap" for step in steps)


def stream_of(analysis: Analysis | None, plan: Plan | None, report: Report | None) -> Stream | None:
    """The stream of what is known; None where nothing tells the order of the updates."""
    widths = _widths(analysis, plan, report)
    updates = list(analysis.updates) if analysis is not None else []
    updates = updates or [("ffn", name) for name in widths]
    if not updates:
        return None
    groups = _groups(plan, report)
    together = [tuple(block.name for block in chain.blocks) for chain in report.chains] if report else []
    steps = [Step(kind, name, widths.get(name)) for kind, name in updates]
    before = _with_gaps(steps)
    after, links = _fuse(before, groups, widths, _inside(before, [*together, *groups]))
    return Stream(tuple(before), tuple(after), tuple(links))


def _widths(analysis: Analysis | None, plan: Plan | None, report: Report | None) -> dict[str, int]:
    found = (
        {block.name: block.intermediate_size for c in report.chains for block in c.blocks} if report else {}
    )
    found = dict(plan.id.blocks) if plan is not None else found
    return dict(analysis.id.blocks) if analysis is not None else found


def _groups(plan: Plan | None, report: Report | None) -> dict[tuple[str, ...], int | None]:
    """Names of the blocks of each group, and its width where it was written."""
    if report is not None and report.groups:
        return {group.blocks: group.intermediate_size for group in report.groups}
    planned = plan.groups if plan is not None else ()
    return {group.blocks: None for group in planned if len(group.blocks) > 1}


def _with_gaps(steps: Sequence[Step]) -> list[Step]:
    """Where attention was removed from a model that has some, a gap stands between two FFNs."""
    if not any(step.kind == "attention" for step in steps):
        return list(steps)
    found = [steps[0]]
    for one, other in pairwise(steps):
        if one.kind == other.kind == "ffn":
            found.append(Step("gap", f"no attention before {other.name}"))
        found.append(other)
    return found


def _inside(steps: Sequence[Step], runs: Sequence[tuple[str, ...]]) -> set[int]:
    """Places of attention that stands between two blocks of a chain, which a chain cannot have."""
    places = {step.name: place for place, step in enumerate(steps)}
    pairs = [(places[a], places[b]) for run in runs for a, b in pairwise(run) if a in places and b in places]
    return {place for a, b in pairs for place in range(a + 1, b) if steps[place].kind == "attention"}


def _fuse(
    steps: Sequence[Step],
    groups: dict[tuple[str, ...], int | None],
    widths: dict[str, int],
    gone: set[int],
) -> tuple[list[Step], list[Link]]:
    places = {step.name: place for place, step in enumerate(steps)}
    spans = {places[g[0]]: g for g in groups if all(name in places for name in g)}
    after: list[Step] = []
    links: list[Link] = []
    place = 0
    while place < len(steps):
        step, names = steps[place], spans.get(place)
        last = place if names is None else places[names[-1]]
        if names is not None:
            width = groups[names] or sum(widths.get(name, 0) for name in names) or None
            links.append(Link(place, last, len(after)))
            step = Step("group", names[0], width, names)
        elif place in gone:
            step = Step("gap", f"{step.name} removed")
        after.append(step)
        place = max(last, place) + 1
    return after, links
