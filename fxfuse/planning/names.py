"""The same layer under the names that two tools give it: "model.layers.5.mlp" and "layers.5.mlp".

1. A name that is the same is the same layer.
2. Else paths are one layer where they end alike from the word before their first number on ("layers.5.mlp"),
   and no other layer of either model ends so: a wrapper's prefix is added or dropped, nothing else.
3. Where none of a model's names is a path with a number (an optimiser dropped them all), layers are taken in
   order, if there are as many.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence

__all__ = ["nearest", "pair_names"]


def pair_names(planned: Sequence[str], found: Sequence[str]) -> dict[str, str]:
    """The name in `found` of every name in `planned` that is there, both in the order of their models."""
    if len(planned) == len(found) and not any(map(_tail, found)):
        return dict(zip(planned, found, strict=True))
    pairs = {name: name for name in planned if name in set(found)}
    ends = _unique_tails(found)
    own = _unique_tails(planned)
    for tail, name in own.items():
        if name not in pairs and tail in ends and ends[tail] not in pairs.values():
            pairs[name] = ends[tail]
    return pairs


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name that is most like `name`, as the end of a sentence; "" where none is like it."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _tail(name: str) -> str:
    """A path from the word before its first number on; "" where it has none."""
    parts = name.split(".")
    places = [index for index, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[max(places[0] - 1, 0) :]) if places and len(parts) > 1 else ""


def _unique_tails(names: Sequence[str]) -> dict[str, str]:
    counts = Counter(map(_tail, names))
    return {_tail(name): name for name in names if _tail(name) and counts[_tail(name)] == 1}
