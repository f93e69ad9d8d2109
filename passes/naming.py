"""Names of blocks: a run of layers in a few words, and the weights that an earlier fusion wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["MARK", "is_wide_weight", "numbered", "span"]

MARK = "fxfuse.blocks"
"""The metadata of each node that was written for a group: the names of its blocks, with ", " between."""

_WIDE = re.compile(r"fxfuse[._]\d+[._/](gate|up|down)")


def span(names: Sequence[str]) -> str:
    """A run of layers: one path where their names count up in one number, else first and last."""
    if len(names) < 2:
        return "".join(names)
    first, last = names[0].split("."), names[-1].split(".")
    places = [index for index, (one, other) in enumerate(zip(first, last, strict=False)) if one != other]
    if (
        len(first) == len(last)
        and len(places) == 1
        and first[places[0]].isdecimal()
        and last[places[0]].isdecimal()
    ):
        place = places[0]
        numbers = range(int(first[place]), int(last[place]) + 1)
        if [numbered(first, place, number) for number in numbers] == list(names):
            return numbered(first, place, f"{first[place]}-{last[place]}")
    return f"{names[0]} to {names[-1]}" if len(names) > 2 else f"{names[0]} and {names[1]}"


def numbered(parts: Sequence[str], place: int, value: object) -> str:
    """A dotted path with `value` in the place of one of its parts."""
    return ".".join([*parts[:place], str(value), *parts[place + 1 :]])


def is_wide_weight(name: str) -> bool:
    """Whether fxfuse named a weight: exporters and dynamo keep the name where they drop every other mark."""
    return _WIDE.search(name) is not None
