"""Plots of a run as SVG files that stand alone and are readable on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fxfuse.page.scales import Linear
from fxfuse.page.svg import drawing, element, label, path, text_width

__all__ = ["ratio_plot", "time_plot"]

_STYLE = """
text { font: 12.5px 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif; fill: #24292f; }
.muted { fill: #6e7781; } .strong { font-weight: 600; } .grid { stroke: #d0d7de; fill: none; }
.even { stroke: #57606a; fill: none; stroke-width: 1.5; } .line { fill: none; stroke-width: 2; }
.noise { stroke-width: 1; opacity: 0.6; } .floor { stroke: #cf222e; stroke-width: 2; fill: none; }
.bar { fill: #8c959f; } .bar.fused { fill: #0969da; } .bar.bound { fill: #bf8700; }
.c0 { stroke: #0969da; } .c1 { stroke: #bf3989; } .c2 { stroke: #1a7f37; } .c3 { stroke: #9a6700; }
.c4 { stroke: #8250df; } .c5 { stroke: #cf222e; } circle { stroke: none; }
circle.c0 { fill: #0969da; } circle.c1 { fill: #bf3989; } circle.c2 { fill: #1a7f37; }
circle.c3 { fill: #9a6700; } circle.c4 { fill: #8250df; } circle.c5 { fill: #cf222e; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .muted { fill: #9198a1; } .grid { stroke: #3d444d; } .even { stroke: #b1bac4; }
.bar { fill: #656c76; } .bar.fused { fill: #4493f8; }
}
"""

_LEFT, _TOP, _HEIGHT, _STEP, _WIDTH = 48, 34, 220, 74, 480
_COLOURS = 6


def ratio_plot(name: str, title: str, series: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """Ratios by number of tokens: a line for each pair, with the least and the greatest round."""
    tokens = sorted({count for points in series.values() for count in points})
    values = [p[k] for points in series.values() for p in points.values() for k in ("least", "greatest")]
    low, high = min([0.9, *values]), max([1.1, *values])
    right = _LEFT + _STEP * max(1, len(tokens))
    y = Linear(low, high, _TOP + _HEIGHT, _TOP)
    parts = [label(0, 16, f"time unfused / time fused; {title}", "strong")]
    for place, text in y.ticks():
        parts += [path([(_LEFT, place), (right, place)], class_="grid")]
        parts += [label(_LEFT - 8, place + 4, text, "muted", "end")]
    parts.append(path([(_LEFT, y(1.0)), (right, y(1.0))], class_="even"))
    x = {count: _LEFT + _STEP * (index + 0.5) for index, count in enumerate(tokens)}
    for count, place in x.items():
        parts.append(label(place, _TOP + _HEIGHT + 20, count, "muted", "middle"))
    parts.append(label(right, _TOP + _HEIGHT + 40, "tokens", "strong", "end"))
    for index, (pair, points) in enumerate(series.items()):
        shade = f"c{index % _COLOURS}"
        shift = 5 * (index - (len(series) - 1) / 2)
        spots = [(x[count] + shift, y(point["median"])) for count, point in sorted(points.items())]
        parts.append(path(spots, class_=f"line {shade}"))
        for (px, py), (_, point) in zip(spots, sorted(points.items()), strict=True):
            parts.append(path([(px, y(point["least"])), (px, y(point["greatest"]))], class_=f"noise {shade}"))
            parts.append(element("circle", cx=px, cy=py, r=4, class_=shade))
        row = _TOP + 10 + 20 * index
        parts.append(element("circle", cx=right + 16, cy=row - 4, r=4, class_=shade))
        parts.append(label(right + 26, row, pair))
    width = right + 40 + max(text_width(pair) for pair in series)
    width = max(width, text_width(title) + 210)
    return _document(name, width, _TOP + _HEIGHT + 52, title, parts)


def time_plot(name: str, title: str, bars: Sequence[tuple[str, float, str, float | None]]) -> str:
    """Times of contestants in microseconds: a bar each, and on it the floor that the machine sets it."""
    left = max(text_width(text) for text, *_ in bars) + 12
    longest = max(max(value, floor or 0.0) for _, value, _, floor in bars)
    x = Linear(0.0, longest * 1.05, left, left + _WIDTH)
    bottom = _TOP + 24 * len(bars)
    parts = [label(0, 16, title, "strong")]
    for place, text in x.ticks():
        parts.append(path([(place, _TOP - 6), (place, bottom)], class_="grid"))
        parts.append(label(place, bottom + 18, text, "muted", "middle"))
    for index, (text, value, kind, floor) in enumerate(bars):
        top = _TOP + 24 * index
        parts.append(label(left - 8, top + 13, text, None, "end"))
        shape = {"x": left, "y": top, "width": max(1.0, x(value) - left), "height": 17, "rx": 2}
        parts.append(element("rect", class_=f"bar {kind}".strip(), **shape))
        if floor is not None:
            parts.append(path([(x(floor), top - 2), (x(floor), top + 19)], class_="floor"))
        parts.append(label(x(max(value, floor or 0.0)) + 5, top + 13, _number(value), "muted"))
    row = bottom + 40
    parts.append(path([(left + 4, row - 12), (left + 4, row + 3)], class_="floor"))
    parts.append(label(left + 12, row, "floor: its weights at the machine's ceiling", "muted"))
    parts.append(label(left + _WIDTH, row, "µs a call", "strong", "end"))
    return _document(name, left + _WIDTH + 60, bottom + 50, title, parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _document(name: str, width: float, height: float, title: str, parts: list[str]) -> str:
    style = f"<style>{_STYLE}</style>"
    return drawing(name, width, height, title, title, [style, *parts]) + "\n"


def series_of(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, float]]]:
    """Ratios by pair and number of tokens."""
    found: dict[str, dict[int, Mapping[str, float]]] = {}
    for case in cases:
        for pair, ratio in case["ratios"].items():
            found.setdefault(pair, {})[case["tokens"]] = ratio
    return found
