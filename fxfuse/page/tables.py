"""HTML tables: real ones on wide screens and paper, a card for each row on narrow ones; text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fxfuse.page.svg import element, escape

__all__ = ["Column", "details", "paragraph", "table"]


@dataclass(frozen=True)
class Column:
    """A heading; numbers stand at the right edge."""

    title: str
    number: bool = True


def table(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], marked: Sequence[int] = (), form: str = "cards"
) -> str:
    """A table of plain texts; rows whose places are in `marked` stand out.

    form: "cards" makes cards on narrow screens, for a few rows of many columns; "plain" wraps its texts, for
    two or three columns; "scroll" scrolls by itself, for very many figures.
    """
    if form != "cards":
        return _plain(columns, rows, marked, form)
    heads = "".join(_cell("th", each.title, each, role="columnheader", scope="col") for each in columns)
    body = "".join(
        element(
            "tr",
            *(
                _cell("td", text, column, role="cell", data_label=column.title)
                for column, text in zip(columns, row, strict=True)
            ),
            role="row",
            class_="marked" if place in marked else None,
        )
        for place, row in enumerate(rows)
    )
    whole = (
        f'<table role="table"><thead role="rowgroup"><tr role="row">{heads}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table>'
    )
    return element("div", whole, class_="cards")


def _plain(columns: Sequence[Column], rows: Iterable[Sequence[str]], marked: Sequence[int], form: str) -> str:
    """A table with few letters a cell: there may be ten thousands."""
    classes = ['<td class="number">' if each.number else "<td>" for each in columns]
    heads = "".join(_cell("th", each.title, each, scope="col") for each in columns)
    body = "".join(
        f"<tr{' class=marked' if place in marked else ''}>"
        + "".join(
            f"{start if text else '<td>'}{escape(text)}</td>"
            for start, text in zip(classes, row, strict=True)
        )
        + "</tr>"
        for place, row in enumerate(rows)
    )
    whole = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    focus = ' tabindex="0"' if form == "scroll" else ""  # so that keys can scroll it
    return f'<div class="{form}"{focus}>{whole}</div>'


def details(summary: str, content: str) -> str:
    """The figures behind a drawing, closed until asked for."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def paragraph(text: str, class_: str | None = None) -> str:
    """A paragraph of plain text."""
    return element("p", escape(text), class_=class_)


def _cell(name: str, text: str, column: Column, **attributes: str) -> str:
    inner = element("span", escape(text)) if name == "td" else escape(text)
    return element(name, inner, class_="number" if column.number else None, **attributes)
