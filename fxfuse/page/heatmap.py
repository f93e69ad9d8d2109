"""The block dependency matrix M as a triangle of cells: row left out, column read, only where i < j.

Nine classes of colour that begin at round values, so that a page's light and dark colours and a printer can
show them; one path for each class keeps 160 rows small.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from fxfuse.analysis.records import Dependency
from fxfuse.page.names import layer_marks, run_label, short_names
from fxfuse.page.numbers import figure, power_text
from fxfuse.page.scales import nice_step, thinned
from fxfuse.page.svg import drawing, element, group, label, path, text_width

__all__ = ["CLASSES", "draw_heatmap"]

CLASSES = 9
_TITLED = 40
"""Up to so many rows each cell tells its value when the mouse rests on it."""


@dataclass(frozen=True)
class _Grid:
    """Pixels: the corner of the first cell and the size of one."""

    left: float
    top: float
    cell: float
    rows: int

    def x(self, place: float) -> float:
        return self.left + self.cell * place

    def y(self, place: float) -> float:
        return self.top + self.cell * place


def draw_heatmap(found: Dependency, groups: Sequence[Sequence[str]] = (), narrow: bool = False) -> str:
    """The triangle with names along its diagonal, the groups outlined, a colour bar in the empty corner."""
    rows = len(found.names)
    grid, named = _grid(found.names, narrow)
    bounds = _bounds(found)
    parts = [
        *_cells(found, grid, bounds),
        *_diagonal(found, grid),
        *_labels(found, grid, named),
        *(_outline(each, found.names, grid) for each in groups if set(each) <= set(found.names)),
        *_colour_bar(grid, bounds, _bar_top(grid, named), narrow),
    ]
    width = 336 if narrow else 880
    height = grid.y(rows) + (76 if _bar_top(grid, named) > grid.y(rows) else 8)
    shown = (found.matrix[i][j] for i in range(rows) for j in range(i + 1, rows))
    top = max((value for value in shown if math.isfinite(value)), default=0.0)
    told = f"{rows} updates; the greatest value is {figure(top)}. The table below holds every row's values."
    kind = "narrow" if narrow else "wide"
    return drawing(f"dependency-{kind}", width, height, "Block dependency matrix M", told, parts)


def _grid(names: Sequence[str], narrow: bool) -> tuple[_Grid, bool]:
    """Names fit where cells are at least 15 pixels high."""
    rows = len(names)
    room = max(text_width(text) for text in short_names(names)) + 10
    left, width = (26.0, 336.0) if narrow else (room, 880.0)
    cell = min(36.0, (width - left - 4) / rows)
    if narrow or cell < 15:
        left, cell = 26.0, min(30.0, (width - 30) / rows)
    return _Grid(left, 24, cell, rows), not narrow and cell >= 15


def _bounds(found: Dependency) -> list[float]:
    """Where the second to the last class begin; few values lie far above the last bound.

    Values within a factor of ten get equal steps; others 1, 2, 5 times powers of ten, since the early layers
    of a model outweigh the rest by orders of magnitude, and the rest is where groups lie.
    """
    rows = len(found.names)
    values = sorted(found.matrix[i][j] for i in range(rows) for j in range(i + 1, rows))
    values = [value for value in values if math.isfinite(value)] or [1.0]
    low, high = (max(1e-9, values[math.ceil(share * len(values)) - 1]) for share in (0.1, 0.98))
    if high <= 10 * low:
        step = nice_step(high / CLASSES)
        return [step * n for n in range(1, CLASSES)]
    top = math.floor(math.log10(high) + 1e-9)
    series = [step * 10.0**power for power in range(top - 3, top + 1) for step in (1, 2, 5)]
    return [bound for bound in series if bound <= high * (1 + 1e-9)][1 - CLASSES :]


def _cells(found: Dependency, grid: _Grid, bounds: Sequence[float]) -> list[str]:
    runs: list[list[str]] = [[] for _ in range(CLASSES)]
    missing: list[str] = []
    for i in range(grid.rows):
        for j in range(i + 1, grid.rows):
            value = found.matrix[i][j]
            place = f"M{grid.x(j):.2f} {grid.y(i):.2f}h{grid.cell:.2f}v{grid.cell:.2f}h-{grid.cell:.2f}z"
            where = runs[bisect_right(bounds, value)] if math.isfinite(value) else missing
            where.append(place)
    painted = [element("path", d="".join(run), class_=f"cell q{n}") for n, run in enumerate(runs) if run]
    painted += [element("path", d="".join(missing), class_="cell missing")] if missing else []
    return painted + (_titles(found, grid) if grid.rows <= _TITLED else [])


def _titles(found: Dependency, grid: _Grid) -> list[str]:
    return [
        group(
            [element("rect", x=grid.x(j), y=grid.y(i), width=grid.cell, height=grid.cell, class_="clear")],
            f"{found.names[j]} without {found.names[i]}: {figure(found.matrix[i][j])}",
        )
        for i in range(grid.rows)
        for j in range(i + 1, grid.rows)
    ]


def _diagonal(found: Dependency, grid: _Grid) -> list[str]:
    """Each update in the form that it has in the drawing of the stream."""
    size = min(9.0, grid.cell * 0.6)
    marks = []
    for place, kind in enumerate(found.kinds):
        x, y = grid.x(place + 0.5) - size / 2, grid.y(place + 0.5) - size / 2
        round_ = size / 2 if kind == "attention" else 0.5
        marks.append(element("rect", x=x, y=y, width=size, height=size, rx=round_, class_=f"block {kind}"))
    return marks


def _labels(found: Dependency, grid: _Grid, named: bool) -> list[str]:
    """Along the diagonal: names, or the numbers of some layers."""
    texts = short_names(found.names) if named else layer_marks(found.names, found.kinds)
    shown = [(place, text) for place, text in enumerate(texts) if text is not None]
    every = 1 if named else thinned(grid.cell * len(texts) / len(shown), 16)
    return [
        label(grid.x(place) - 5, grid.y(place + 0.5) + 4.5, text, "muted", "end")
        for place, text in shown[::every]
    ]


def _outline(names: Sequence[str], all_names: Sequence[str], grid: _Grid) -> str:
    """The triangle of the values inside of one group."""
    a, b = all_names.index(names[0]), all_names.index(names[-1])
    corners = [(grid.x(a), grid.y(a)), (grid.x(b + 1), grid.y(a)), (grid.x(b + 1), grid.y(b + 1))]
    for place in range(b, a, -1):
        corners += [(grid.x(place), grid.y(place + 1)), (grid.x(place), grid.y(place))]
    corners.append((grid.x(a), grid.y(a + 1)))
    return group([path(corners, closed=True, class_="outline")], f"group {run_label(names)}")


def _bar_top(grid: _Grid, named: bool) -> float:
    """In the empty corner, if the names there leave room for it, else below the triangle."""
    corner = grid.y(grid.rows) - 48
    free = grid.left + (corner - 24 - grid.top) - (text_width("x" * 26) if named else 30)
    return corner if free > 450 else grid.y(grid.rows) + 34


def _colour_bar(grid: _Grid, bounds: Sequence[float], y: float, narrow: bool) -> list[str]:
    """The nine classes and where they begin."""
    width = 24 if narrow else 40
    left = 6.0
    every = 3 if narrow else 1
    title = label(left, y - 8, "M: how much an update changes when an earlier one is left out", "muted")
    short = label(left, y - 8, "M: change without the earlier update", "muted")
    bars = [
        element("rect", x=left + n * width, y=y, width=width, height=14, class_=f"cell q{n}")
        for n in range(CLASSES)
    ]
    starts = [
        label(left + n * width, y + 30, _bound(bound), None, "start" if n == 0 else "middle")
        for n, bound in enumerate([0.0, *bounds])
        if n % every == 0
    ]
    more = [label(left + CLASSES * width + 4, y + 12, "and more", "muted")]
    return [short if narrow else title, *bars, *starts, *more]


def _bound(value: float) -> str:
    return f"{value:g}" if value == 0 or value >= 0.001 else power_text(value)
