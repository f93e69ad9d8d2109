"""SVG as text: elements, escaped and rounded. Colours come from classes, so that a page decides on them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from fxfuse.naming import printable

__all__ = ["Point", "drawing", "element", "escape", "group", "label", "path", "shorten", "text_width"]

Point = tuple[float, float]

_SIZE = 12.5
"""Pixels of the text in drawings; drawings are shown in their own size, never scaled down."""
_RATIO = 0.6
"""The width of a letter over its size, on the safe side for common sans-serif fonts."""


def escape(text: object) -> str:
    """Text or an attribute of HTML and XML; control characters are written out."""
    return html.escape(printable(str(text)))


def element(name: str, *children: str, **attributes: object) -> str:
    """One element: `class_` and the like lose their underscore, None is left out, numbers are rounded."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def label(x: float, y: float, text: object, class_: str | None = None, anchor: str | None = None) -> str:
    """A line of text whose baseline starts (or as `anchor` says: "middle", "end") at x, y."""
    return element("text", escape(text), x=x, y=y, class_=class_, text_anchor=anchor)


def group(children: Iterable[str], title: object = None, **attributes: object) -> str:
    """Elements together; `title` is what a browser shows when the mouse rests on them."""
    told = [element("title", escape(title))] if title is not None else []
    return element("g", *told, *children, **attributes)


def path(points: Sequence[Point], closed: bool = False, **attributes: object) -> str:
    """A line through points."""
    steps = "L".join(f"{_value(x)} {_value(y)}" for x, y in points)
    return element("path", d=f"M{steps}{'Z' if closed else ''}", **attributes)


def drawing(
    name: str, width: float, height: float, title: str, description: str, children: Iterable[str]
) -> str:
    """A whole SVG document in its own size; `name` is unique in the page it goes into."""
    return element(
        "svg",
        element("title", escape(title), id=f"{name}-title"),
        element("desc", escape(description), id=f"{name}-desc"),
        *children,
        xmlns="http://www.w3.org/2000/svg",
        class_="chart",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        width=width,
        height=height,
        viewBox=f"0 0 {_value(width)} {_value(height)}",
    )


def text_width(text: str) -> float:
    """About how many pixels a line of text takes in a drawing."""
    return len(text) * _SIZE * _RATIO


def shorten(text: str, length: int) -> str:
    """At most `length` characters: the middle goes, since names differ at their ends."""
    shown = printable(text)
    if len(shown) <= length:
        return shown
    end = (length - 1) * 2 // 3
    return f"{shown[: length - 1 - end]}…{shown[len(shown) - end :]}"


def _value(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
