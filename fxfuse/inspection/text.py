"""An inspection as text: one line per step, chains in brackets, and below why not more.

Into a pipe every line is whole, however long; on a screen what does not fit goes on, indented.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from fxfuse.inspection.records import Inspection, Line, Place, StreamReport
from fxfuse.naming import printable, spans

__all__ = ["write_lines"]

_KINDS = {"ffn": "FFN"}
_NAME = 60  # columns that names may take before facts go their own way
_LAYER = re.compile(r"(?<=[A-Za-z_]\.)\d+(?=\.|\b)")
_NODE = re.compile(r"(_+\d+)+\b")

Styled = tuple[str, str]
"""A line and its style as rich spells it."""


def write_lines(inspection: Inspection, width: int | None, marks: str) -> Iterator[Styled]:
    """The text line by line."""
    yield from _fold(_headline(inspection), "bold", width, 2)
    for stream in inspection.streams:
        yield "", ""
        yield from _fold(_title(stream), "bold", width, 2)
        yield from _stream(stream, width, marks)
    begins = [
        Place("ffn", line.name, line.reason) for line in inspection.lines() if line.chain and line.reason
    ]
    for title, places in (("where a chain begins", begins), ("not in a chain", inspection.places)):
        if places:
            yield "", ""
            yield title, "bold"
            for text in _reasons(places):
                yield from _fold(f"  {text}", "", width, 6)
    if inspection.notes:
        yield "", ""
    for note in inspection.notes:
        yield from _fold(f"note: {note}", "dim", width, 2)


def _headline(inspection: Inspection) -> str:
    lines = list(inspection.lines())
    counts = [
        f"{count} {what}"
        for count, what in (
            (sum("attention" in line.kind for line in lines), "attention"),
            (sum("ffn" in line.kind for line in lines), "FFN"),
            (sum("experts" in line.kind for line in lines), "experts"),
        )
        if count
    ]
    lengths = [len(chain) for chain in inspection.chains]
    told = (
        f"chain{'s' if len(lengths) > 1 else ''} of {_listed(lengths)} FFN blocks"
        if lengths
        else "no chain of FFN blocks"
    )
    if not lines:
        return f"{inspection.model}: no residual stream found; {told}"
    return f"{inspection.model}: {', '.join(counts) or 'no attention and no FFN'}; {told}"


def _listed(lengths: Sequence[int]) -> str:
    words = [str(each) for each in lengths[:12]] + (
        [f"{len(lengths) - 12} more"] if len(lengths) > 12 else []
    )
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _title(stream: StreamReport) -> str:
    size = f", hidden size {stream.hidden_size}" if stream.hidden_size is not None else ""
    where = f" {stream.name}" if stream.name else ""
    inside = f", inside {stream.inside}" if stream.inside else ""
    return f"residual stream{where}{size}{inside}"


def _stream(stream: StreamReport, width: int | None, marks: str) -> Iterator[Styled]:
    lines = stream.lines
    kinds = [_kind(line) for line in lines]
    digits, widest = len(str(len(lines))), max(map(len, kinds), default=0)
    named = max((len(line.name) for line in lines if len(line.name) <= _NAME), default=0)
    for index, (line, kind) in enumerate(zip(lines, kinds, strict=True)):
        mark = _mark(lines, index, marks)
        number = "" if line.kind == "start" else str(index)
        text = (
            f"{mark} {number:>{digits}}  {kind:<{widest}}  {line.name:<{named}}  {_facts(line, lines, index)}"
        )
        yield from _fold(text, "green" if line.chain else "", width, digits + widest + 8)


def _mark(lines: Sequence[Line], index: int, marks: str) -> str:
    chain = lines[index].chain
    if chain is None:
        return " "
    first = index == 0 or lines[index - 1].chain != chain
    last = index + 1 == len(lines) or lines[index + 1].chain != chain
    return marks[0] if first else marks[2] if last else marks[1]


def _kind(line: Line) -> str:
    return " + ".join(_KINDS.get(each, each) for each in line.kind.split(" + "))


def _facts(line: Line, lines: Sequence[Line], index: int) -> str:
    facts = line.facts
    words = list(_words(facts))
    begins = line.chain is not None and (index == 0 or lines[index - 1].chain != line.chain)
    if begins:
        length = sum(each.chain == line.chain for each in lines[index : index + 100_000])
        words.append(f"chain {line.chain}: {length} FFN blocks")
    return ", ".join(words)


def _words(facts: dict[str, Any]) -> Iterator[str]:
    if "norm" in facts:
        yield f"{facts['norm']} {facts['eps']:.3g}"
    if "activation" in facts:
        yield f"{'gated ' if facts['gated'] else ''}{facts['activation']}"
    if "intermediate_size" in facts:
        yield f"{facts['hidden_size']}->{facts['intermediate_size']}"
    if "operator" in facts:
        yield str(facts["operator"])
    if facts.get("cross"):
        yield "reads another stream"
    if facts.get("beside"):
        yield "in parallel with the line above"
    if facts.get("operators"):
        yield ", ".join(facts["operators"])


def _reasons(places: Sequence[Place]) -> Iterator[str]:
    """One text for places that differ in their layer's number alone."""
    groups: dict[tuple[str, str, str], list[tuple[Place, str]]] = {}
    for place in places:
        name, reason = _numberless(place)
        groups.setdefault((place.kind, name, reason), []).append((place, reason))
    for group in groups.values():
        same = len({place.reason for place, _ in group}) == 1
        yield f"{spans([place.name for place, _ in group])}: {group[0][0].reason if same else group[0][1]}"


def _numberless(place: Place) -> tuple[str, str]:
    """Name and reason with the layer's number as N, the next one's as N+1, and the numbers of nodes as *."""
    own = _LAYER.search(place.name)
    if own is None:
        return place.name, place.reason
    layer, path = int(own.group()), place.name[: own.start()]

    def relative(match: re.Match[str]) -> str:
        away = int(match.group()) - layer
        return "N" if away == 0 else f"N{away:+d}" if abs(away) < 3 else match.group()

    reason = re.sub(rf"(?<={re.escape(path)})\d+", relative, place.reason)
    return f"{path}N{place.name[own.end() :]}", _NODE.sub("_*", reason)


def _fold(text: str, style: str, width: int | None, indent: int) -> Iterator[Styled]:
    text = printable(text).rstrip()
    if width is None or len(text) <= width:
        yield text, style
        return
    lead = len(text) - len(text.lstrip())
    for line in textwrap.wrap(
        text, width, subsequent_indent=" " * min(indent, width // 2), drop_whitespace=True,
        initial_indent=text[:lead], break_on_hyphens=False, replace_whitespace=False,
    ):  # fmt: skip
        yield line.rstrip(), style
