"""Times that a user measured, for groups by name, by width or by length.

    {"1": 0.21, "2": 0.33, "3": 0.47}                             by how many blocks a group has
    {"width 2816": 0.21, "width 5632": 0.33}                      by the group's whole intermediate size
    {"model.layers.4.mlp": 0.21, "model.layers.4-6.mlp": 0.47}    by name, as tables and reports write it

All in milliseconds, of the FFN with its norm and its residual add. A group is looked up by its name (the
names joined by " + " do as well), then by its width, then by its length. What a block costs that stays as it
is has to be there for every block; a group without a time is left out.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fxfuse.errors import InputError
from fxfuse.naming import span

__all__ = ["AnyLatency", "Latency", "read_latency"]

AnyLatency: TypeAlias = "str | os.PathLike[str] | Mapping[str | int | tuple[str, ...], float] | Latency"
"""A JSON file, or the same as a mapping, in which lengths may be numbers and names a tuple."""


class Latency:
    """Milliseconds by what a group is called, by its width, by its length."""

    def __init__(self, times: Mapping[str, float]) -> None:
        self.times = dict(times)

    def of(self, names: Sequence[str], widths: Sequence[int]) -> float | None:
        """The time of a group, or of one block; None where there is none."""
        return next((self.times[key] for key in _keys(names, widths) if key in self.times), None)

    def of_block(self, name: str, width: int) -> float:
        """The time of a block that stays as it is.

        Raises:
            InputError: There is none.
        """
        found = self.of([name], [width])
        if found is None:
            keys = '", "'.join(dict.fromkeys(_keys([name], [width])))
            raise InputError(f'The latency has no time for the single block {name}: add one of "{keys}".')
        return found


def read_latency(source: AnyLatency) -> Latency:
    """Times from a file or a mapping.

    Raises:
        InputError: There is no such file, it holds no times, or one of them is no time.
    """
    if isinstance(source, Latency):
        return source
    where = "The latency" if isinstance(source, Mapping) else f"The latency file {os.fspath(source)}"
    data = source if isinstance(source, Mapping) else _read_json(Path(source))
    if not isinstance(data, Mapping) or not data:
        raise InputError(f'{where} must hold milliseconds by group, as in {{"1": 0.21, "2": 0.33}}.')
    return Latency({_key(key, where): _time(key, value, where) for key, value in data.items()})


def _keys(names: Sequence[str], widths: Sequence[int]) -> tuple[str, ...]:
    return span(names), " + ".join(names), f"width {sum(widths)}", str(len(names))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"There is no latency file {path}: check the path.") from None
    except OSError as error:
        raise InputError(f"The latency file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"The latency file {path} is not JSON ({error}).") from None


def _key(key: Any, where: str) -> str:
    if isinstance(key, tuple):
        return " + ".join(map(str, key))
    text = " ".join(str(key).split())
    if re.match(r"width\b", text) and not re.fullmatch(r"width \d+", text):
        raise InputError(f'{where} has {text!r}: write a width as "width 5632".')
    return text


def _time(key: Any, value: Any, where: str) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise InputError(f"{where} has {value!r} for {key!r}: give milliseconds.")
    return float(value)
