"""Which attentions are meant: layers by number, paths, what a choice found, or what a configuration says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from fxfuse.errors import InputError
from fxfuse.naming import spans
from fxfuse.passes.records import Miss
from fxfuse.removal.decisions import read_decisions
from fxfuse.removal.records import Choice

__all__ = ["Named", "Which", "parse_layers", "select"]

Which: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Choice | Iterable[int | str]"
"""Layers as "5-10,12" or as numbers, layer paths, a Choice, or a configuration: its path or content."""


class Named(Protocol):
    """An attention by its path and layer, in whichever form of a model."""

    @property
    def name(self) -> str:
        """Its path."""

    @property
    def layer(self) -> int | None:
        """Its layer; None where paths have no numbers."""


Meant = TypeVar("Meant", bound=Named)

_LIST = re.compile(r"\s*\d+(\s*-\s*\d+)?(\s*,\s*\d+(\s*-\s*\d+)?)*\s*")


def parse_layers(text: str) -> list[int]:
    """The numbers of "5-10,12".

    Raises:
        InputError: It is no such list, or a range runs backwards.
    """
    if not _LIST.fullmatch(text):
        raise InputError(f"{text!r} is no list of layers: write one such as 5-10,12.")
    found: list[int] = []
    for part in text.split(","):
        first, _, last = (each.strip() for each in part.partition("-"))
        numbers = range(int(first), int(last or first) + 1)
        if not numbers:
            raise InputError(f"The range {part.strip()} runs backwards: write {last}-{first}.")
        found += numbers
    return list(dict.fromkeys(found))


def select(which: Which, found: Sequence[Meant], misses: Sequence[Miss]) -> list[Meant]:
    """Those of the attentions `found` that are meant, in their order.

    Raises:
        InputError: One that is named is not there, cannot be left out, or none is named.
    """
    wanted = _wanted(which)
    if not wanted:
        raise InputError("No attention is named: say which are to go.")
    if not found and not misses:
        raise InputError("The model holds no attention on its residual stream, so there is none to remove.")
    numbers = {_number(each, place): each for place, each in enumerate(found)}
    names = {each.name: each for each in found}
    refused = {miss.where: miss.reason for miss in misses}
    chosen = set[str]()
    for each in wanted:
        attention = names.get(each) if isinstance(each, str) else numbers.get(each)
        if attention is None:
            raise _unknown(each, found, refused)
        chosen.add(attention.name)
    return [each for each in found if each.name in chosen]


def _wanted(which: Which) -> list[int | str]:
    if isinstance(which, Choice):
        return list(which.names)
    if isinstance(which, Mapping):
        return list(read_decisions(which))
    if isinstance(which, (str, os.PathLike)):
        text = os.fspath(which)
        if text.endswith(".json") or Path(text).is_dir():
            return list(read_decisions(text))
        return list(parse_layers(text)) if text[:1].isdecimal() or "." not in text else [text]
    found = list(which)
    wrong = [each for each in found if isinstance(each, bool) or not isinstance(each, (int, str))]
    if wrong:
        raise InputError(f"{wrong[0]!r} names no layer: give numbers or layer paths.")
    return found


def _number(attention: Named, place: int) -> int:
    """Its layer, or its place among the attentions where paths have no numbers."""
    return place if attention.layer is None else attention.layer


def _unknown(wanted: int | str, found: Sequence[Named], refused: Mapping[str, str]) -> InputError:
    what = f"layer {wanted}" if isinstance(wanted, int) else wanted
    own = [name for name in refused if _is_meant(wanted, name)]
    if own:
        return InputError(f"{own[0]} cannot be removed: {refused[own[0]]}.")
    there = spans([each.name for each in found])
    return InputError(
        f"There is no attention to remove in {what}: the model has {there or 'none that can be removed'}."
    )


def _is_meant(wanted: int | str, name: str) -> bool:
    if isinstance(wanted, str):
        return wanted == name
    return next((int(part) for part in name.split(".") if part.isdecimal()), None) == wanted
