"""Short names for runs of layers: "model.layers.3-7.mlp" for five blocks."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["span"]


def span(names: Sequence[str]) -> str:
    """Consecutive layers as one path where their names differ in one number, else first and last."""
    if len(names) < 2:
        return "".join(names)
    first, last = names[0].split("."), names[-1].split(".")
    places = [index for index, (one, other) in enumerate(zip(first, last, strict=False)) if one != other]
    if len(first) == len(last) and len(places) == 1 and first[places[0]].isdigit() and last[places[0]].isdigit():
        place = places[0]
        numbers = range(int(first[place]), int(last[place]) + 1)
        if [_at(first, place, number) for number in numbers] == list(names):
            return _at(first, place, f"{first[place]}-{last[place]}")
    return f"{names[0]} to {names[-1]}" if len(names) > 2 else f"{names[0]} and {names[1]}"


def _at(parts: Sequence[str], place: int, value: object) -> str:
    return ".".join([*parts[:place], str(value), *parts[place + 1 :]])
