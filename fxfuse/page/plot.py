"""What charts with two axes share: the frame, axes with titles, marks of measured and predicted figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxfuse.page.numbers import known
from fxfuse.page.scales import Scale
from fxfuse.page.svg import element, label, path, text_width

__all__ = ["Frame", "axes", "bars", "dot", "key", "place_labels", "ring"]


@dataclass(frozen=True)
class Frame:
    """A chart's size and the edges of its plot area, in pixels."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


def axes(frame: Frame, x: Scale, y: Scale, x_title: str, y_title: str) -> list[str]:
    """Grid lines, ticks and titles; the title of y stands above it, where it reads without turning."""
    parts = [label(0, frame.top - 12, y_title, "strong")]
    for place, text in y.ticks():
        parts.append(path([(frame.left, place), (frame.right, place)], class_="grid"))
        parts.append(label(frame.left - 8, place + 4.5, text, "muted", "end"))
    parts.append(path([(frame.left, frame.bottom), (frame.right, frame.bottom)], class_="axis"))
    for place, text in _apart(x.ticks()):
        parts.append(path([(place, frame.bottom), (place, frame.bottom + 5)], class_="axis"))
        parts.append(label(place, frame.bottom + 19, text, "muted", "middle"))
    return [*parts, label(frame.right, frame.bottom + 38, x_title, "strong", "end")]


def _apart(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Only ticks whose labels do not touch the last one's."""
    kept: list[tuple[float, str]] = []
    for place, text in ticks:
        if not kept or place - kept[-1][0] > (text_width(text) + text_width(kept[-1][1])) / 2 + 6:
            kept.append((place, text))
    return kept


def dot(x: float, y: float, kind: str, radius: float = 4) -> str:
    """A mark: "measured" is a filled circle, "predicted" a hollow diamond."""
    if kind.startswith("predicted"):
        r = radius + 0.5
        return path([(x - r, y), (x, y - r), (x + r, y), (x, y + r)], closed=True, class_=f"dot {kind}")
    return element("circle", cx=x, cy=y, r=radius, class_=f"dot {kind}")


def ring(x: float, y: float, radius: float = 8) -> str:
    """Around the mark that was chosen."""
    return element("circle", cx=x, cy=y, r=radius, class_="ring")


def bars(x: float, y: Scale, value: float, error: float | None, floor: float) -> str:
    """One standard error up and down from a value; what falls to zero or less ends at the pixel `floor`."""
    if error is None or not known(error) or error <= 0:
        return ""
    low = y(value - error) if value - error > 0 else floor
    return path([(x, y(value + error)), (x, min(low, floor))], class_="error")


def key(frame: Frame, parts: Sequence[tuple[str, str]], y: float) -> list[str]:
    """Which mark is what, in one line that ends at the plot's right edge."""
    x = frame.right - sum(text_width(text) + 24 for _, text in parts)
    drawn: list[str] = []
    for kind, text in parts:
        drawn += [dot(x + 5, y - 4, kind), label(x + 15, y, text, "muted")]
        x += text_width(text) + 24
    return drawn


def place_labels(
    wanted: Sequence[tuple[float, float, str]], frame: Frame, taken: Sequence[tuple[float, float]] = ()
) -> list[str]:
    """Labels beside points, in order of importance; one that would cover another or a point is left out."""
    boxes = [(x - 5, y - 5, x + 5, y + 5) for x, y in taken]
    drawn = []
    for x, y, text in wanted:
        width = text_width(text)
        for left, base in (
            (x + 11, y + 4.5),
            (x - 11 - width, y + 4.5),
            (x - width / 2, y - 11),
            (x - width / 2, y + 21),
        ):
            box = (left - 1, base - 12, left + width + 1, base + 3)
            inside = (
                box[0] >= frame.left
                and box[2] <= frame.width
                and box[3] <= frame.bottom - 1
                and box[1] >= frame.top - 3
            )
            if inside and not any(_meet(box, other) for other in boxes):
                boxes.append(box)
                drawn.append(label(left, base, text, "halo"))
                break
    return drawn


_Box = tuple[float, float, float, float]


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
