"""Layer names in drawings: what they share goes away, and where there is no room a number stands for them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from fxfuse.naming import span
from fxfuse.page.svg import shorten

__all__ = ["layer_marks", "lengths_text", "number_of", "numbers_of", "run_label", "short_names"]

_LONGEST = 26
_MANY = 4


def number_of(name: str) -> int | None:
    """The layer's number: the first part of a dotted name that is one."""
    part = next((part for part in name.split(".") if part.isdecimal()), None)
    return None if part is None else int(part)


def numbers_of(names: Sequence[str]) -> list[str]:
    """A short label for each name: its layer's number where all have one, else its place from 1."""
    found = [number_of(name) for name in names]
    if any(number is None for number in found):
        return [str(place + 1) for place in range(len(names))]
    return [str(number) for number in found]


def layer_marks(names: Sequence[str], kinds: Sequence[str]) -> list[str | None]:
    """Layers' numbers at their FFNs, where those have numbers of their own; else every place, from 1."""
    found = [number_of(name) if kind == "ffn" else None for name, kind in zip(names, kinds, strict=True)]
    numbers = [number for number in found if number is not None]
    if len(set(numbers)) == kinds.count("ffn") > 0:
        return [None if number is None else str(number) for number in found]
    return [str(place + 1) for place in range(len(names))]


def short_names(names: Sequence[str], longest: int = _LONGEST) -> list[str]:
    """Names without the leading dotted parts that all share, cut in the middle where they are still long."""
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    named = shared and parts[0][shared - 1] in ("layers", "h", "blocks", "layer")
    shared -= 1 if named else 0  # "layers.4.mlp" tells more than "4.mlp"
    return [shorten(".".join(p[shared:]), longest) for p in parts]


def run_label(names: Sequence[str], longest: int = _LONGEST) -> str:
    """A run of layers in few characters: "4–6" where their names are numbered, else the span cut short."""
    found = [number_of(name) for name in names]
    if any(number is None for number in found):
        return shorten(span(names), longest)
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"


def lengths_text(lengths: Sequence[Sequence[int]]) -> str:
    """The lengths of groups over all chains: "3+2+2, 4"; many equal ones in a row as "10×2+4"."""
    if all(length == 1 for each in lengths for length in each):
        return "not fused"
    return ", ".join("+".join(_run(k, len(list(same))) for k, same in groupby(each)) for each in lengths)


def _run(length: int, times: int) -> str:
    return f"{times}×{length}" if times > _MANY else "+".join([str(length)] * times)
