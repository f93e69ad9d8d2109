"""The residual stream before and after fusing: one row a step, downwards; widths show intermediate sizes.

before             after
  ( )  attention    ( )
  [ ]  FFN   ──┐    [ ]
  [ ]  FFN     ├─ [       ]   one group: what was deep is wide
  [ ]  FFN   ──┘    ( )
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fxfuse.page.names import numbers_of, run_label, short_names
from fxfuse.page.numbers import count
from fxfuse.page.scales import spread, thinned
from fxfuse.page.steps import Link, Step, Stream
from fxfuse.page.svg import drawing, element, group, label, path, text_width

__all__ = ["draw_stream"]

_TOP = 52
_LABEL_GAP = 16


@dataclass(frozen=True)
class _Places:
    """Where things lie, in pixels: centres of both columns and the greatest half widths of their blocks."""

    name: str
    width: int
    labels: int
    before: int
    before_half: int
    after: int
    after_half: int
    pill: float


_WIDE = _Places("wide", 880, 176, 236, 48, 466, 164, 26)
_NARROW = _Places("narrow", 336, 30, 64, 28, 186, 72, 16)


def draw_stream(stream: Stream, narrow: bool = False) -> str:
    """Both columns side by side; rows are 7 to 22 pixels high, so that 160 of them fit a page."""
    at = _NARROW if narrow else _WIDE
    row = min(22.0, max(7.0, 1150 / len(stream.before)))
    unit = _unit(stream, at)
    box = max((_wide(step, unit) for step in stream.before if step.kind == "ffn"), default=99.0)
    at = replace(at, pill=max(9.0, min(at.pill, 1.6 * box)))
    parts = [
        *(_ribbon(link, stream, at, row, unit) for link in stream.links),
        *_column("before", stream.before, at.before, at, row, unit, _fused_places(stream)),
        *_column("after", stream.after, at.after, at, row, unit, set()),
        *_row_labels(stream.before, at, row, narrow),
        *_group_labels(stream, at, row, unit, narrow),
    ]
    height = _TOP + row * len(stream.before) + 22
    depths = f"{Stream.depth(stream.before)} updates, {Stream.depth(stream.after)} after"
    groups = ", ".join(f"{len(stream.after[link.after].members)} FFNs as one" for link in stream.links)
    told = f"Two columns of blocks in order. Before fusing {depths}. Groups: {groups or 'none'}."
    return drawing(f"stream-{at.name}", at.width, height, "Residual stream before and after", told, parts)


def _unit(stream: Stream, at: _Places) -> float:
    """Pixels for each unit of intermediate size, the same in both columns."""
    before = max([step.width or 1 for step in stream.before])
    after = max([step.width or 1 for step in stream.after])
    return min(2 * at.before_half / before, 2 * at.after_half / after)


def _fused_places(stream: Stream) -> set[int]:
    return {place for link in stream.links for place in range(link.first, link.last + 1)}


def _column(
    title: str,
    steps: Sequence[Step],
    x: float,
    at: _Places,
    row: float,
    unit: float,
    fused: set[int],
) -> list[str]:
    end = _TOP + row * len(steps)
    tip = [(x - 4, end + 6), (x, end + 13), (x + 4, end + 6)]
    return [
        label(x, 18, title, "strong", "middle"),
        label(x, 36, f"{Stream.depth(steps)} updates deep", "muted", "middle"),
        path([(x, _TOP - 6), (x, end + 12)], class_="spine"),
        path(tip, class_="spine"),
        *(
            _block(step, x, _TOP + row * place, at, row, unit, place in fused)
            for place, step in enumerate(steps)
        ),
    ]


def _block(step: Step, x: float, y: float, at: _Places, row: float, unit: float, fused: bool) -> str:
    """Attention is a pill, removed attention its outline, an FFN a box as wide as its inner layer."""
    high = row - min(4.0, row * 0.28)
    ffn = step.kind in ("ffn", "group")
    width = _wide(step, unit) if ffn else at.pill
    kind = "group" if step.kind == "group" else "ffn fused" if fused and ffn else step.kind
    shape = element(
        "rect",
        x=x - width / 2,
        y=y + (row - high) / 2,
        width=width,
        height=high,
        rx=1.5 if ffn else min(high, at.pill) / 2 if step.kind != "other" else 0,
        class_=f"block {kind}",
    )
    return group([shape], _told(step))


def _told(step: Step) -> str:
    width = f", intermediate size {count(step.width)}" if step.width else ""
    if step.kind == "group":
        return f"{step.members[0]} to {step.members[-1]}: {len(step.members)} FFNs as one{width}"
    kinds = {"ffn": "FFN", "gap": "removed attention"}
    return f"{step.name}: {kinds.get(step.kind, step.kind)}{width}"


def _wide(step: Step, unit: float) -> float:
    """The width of an FFN's box; one whose size is unknown is drawn as the thinnest."""
    return max(3.0, unit * (step.width or 0))


def _ribbon(link: Link, stream: Stream, at: _Places, row: float, unit: float) -> str:
    """From the blocks of a group to the block that they became."""
    blocks = stream.before[link.first : link.last + 1]
    x0 = at.before + max(at.pill, *(_wide(step, unit) for step in blocks)) / 2 + 4
    x1 = at.after - _wide(stream.after[link.after], unit) / 2 - 3
    middle = (x0 + x1) / 2
    top, bottom = _TOP + row * link.first + 1, _TOP + row * (link.last + 1) - 1
    to, end = _TOP + row * link.after + 1, _TOP + row * (link.after + 1) - 1
    line = (
        f"M{x0:.1f} {top:.1f}C{middle:.1f} {top:.1f} {middle:.1f} {to:.1f} {x1:.1f} {to:.1f}"
        f"V{end:.1f}C{middle:.1f} {end:.1f} {middle:.1f} {bottom:.1f} {x0:.1f} {bottom:.1f}Z"
    )
    return element("path", d=line, class_="ribbon")


def _row_labels(steps: Sequence[Step], at: _Places, row: float, narrow: bool) -> list[str]:
    """Names where rows are high enough for text, else the numbers of some layers."""
    named = not narrow and row >= 15
    shown = [
        place
        for place, step in enumerate(steps)
        if step.kind not in (("gap",) if named else ("gap", "attention"))
    ]
    names = [steps[place].name for place in shown]
    texts = short_names(names, 23) if named else numbers_of(names)
    gaps = [b - a for a, b in pairwise(shown)]
    every = 1 if named or not gaps else thinned(row * sum(gaps) / len(gaps), _LABEL_GAP)
    return [
        label(at.labels, _TOP + row * (place + 0.5) + 4.5, text, "muted", "end")
        for index, (place, text) in enumerate(zip(shown, texts, strict=True))
        if index % every == 0
    ]


def _group_labels(stream: Stream, at: _Places, row: float, unit: float, narrow: bool) -> list[str]:
    """What each group is, right of its block, moved apart where blocks lie close to each other."""
    centres = [_TOP + row * (link.after + 0.5) for link in stream.links]
    places = spread(centres, _LABEL_GAP, _TOP, _TOP + row * len(stream.before))
    x = at.after + at.after_half + 22
    parts = []
    for link, centre, y in zip(stream.links, centres, places, strict=True):
        step = stream.after[link.after]
        edge = at.after + _wide(step, unit) / 2 + 3
        parts.append(path([(edge, centre), (x - 16, centre), (x - 4, y)], class_="leader"))
        parts.append(_group_label(step, x, y + 4.5, narrow))
    return parts


def _group_label(step: Step, x: float, y: float, narrow: bool) -> str:
    size = len(step.members)
    if narrow:
        return label(x, y, f"{size} FFNs", "strong")
    name = run_label(step.members, 14)
    wide = f", {count(step.width)} wide" if step.width else ""
    return label(x, y, name, "strong") + label(x + text_width(name) + 12, y, f"{size} FFNs{wide}", "muted")
