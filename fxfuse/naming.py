"""Names as a user reads them: "model.layers.3-7.mlp" for five blocks, and nothing that a terminal obeys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fxfuse.passes.naming import numbered, span

__all__ = ["layer_words", "printable", "ranges", "span", "spans"]

_SHOWN = 4


def spans(names: Sequence[str]) -> str:
    """Any layers, in no order: "model.layers.0,2-3.mlp"; of names without a number the first few."""
    numbers: dict[tuple[tuple[str, ...], int], set[int]] = {}
    plain: list[str] = []
    for name in dict.fromkeys(names):
        parts = name.split(".")
        place = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
        if place is None:
            plain.append(name)
        else:
            key = tuple(numbered(parts, place, "").split(".")), place
            numbers.setdefault(key, set()).add(int(parts[place]))
    found = [
        numbered(parts, place, ",".join(_ranges(sorted(counts))))
        for (parts, place), counts in numbers.items()
    ]
    found += plain
    more = len(found) - _SHOWN
    return ", ".join(found[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def ranges(numbers: Sequence[int]) -> str:
    """Layers as a user writes them: "5-10,12"."""
    return ",".join(_ranges(sorted(numbers)))


def layer_words(numbers: Sequence[int]) -> str:
    """Layers in a sentence: "layer 3", "layers 5-10,12"."""
    return f"layer{'s' * (len(numbers) != 1)} {ranges(numbers)}"


def printable(text: str) -> str:
    """Without control characters: names come out of files that anybody may have written."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    start = 0
    for index, number in enumerate(numbers):
        if index + 1 == len(numbers) or numbers[index + 1] != number + 1:
            yield str(number) if index == start else f"{numbers[start]}-{number}"
            start = index + 1
