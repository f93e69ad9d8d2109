"""The same layer under the names that two tools give it: "model.layers.5.mlp" and "layers.5.mlp".

1. A name that is the same is the same layer.
2. Else where one name is the end of the other ("layers.5.mlp") or its beginning ("model.layers.5"), and of no
   other layer's: a wrapper's prefix was added or dropped, an optimiser left the layer's path alone.
3. Else where they end alike from the word before their first number on ("layers.5.mlp"), or where that word,
   the number and the last word are the same ("block.5 ... DenseReluDense"), and of no other layer of either
   model: an exporter dropped modules between.
4. Where none of a model's names is a path with a number (an optimiser dropped them all), layers are taken in
   order, if there are as many.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Sequence

__all__ = ["nearest", "pair_names"]


def pair_names(planned: Sequence[str], found: Sequence[str], *, ordered: bool) -> dict[str, str]:
    """The name in `found` of every name in `planned` that is there.

    `ordered`: both are in the order of their models, so that rule 4 may be used.
    """
    if ordered and len(planned) == len(found) and not any(map(_tail, found)):
        return dict(zip(planned, found, strict=True))
    pairs = {name: name for name in planned if name in set(found)}
    pairs |= _contained(
        [name for name in planned if name not in pairs], [name for name in found if name not in pairs]
    )
    for key in (_tail, _ends):
        theirs = _unique(found, key)
        for end, name in _unique(planned, key).items():
            if name not in pairs and end in theirs and theirs[end] not in pairs.values():
                pairs[name] = theirs[end]
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


def _contained(planned: Sequence[str], found: Sequence[str]) -> dict[str, str]:
    """Rule 2 among names that are left."""
    both = [(one, other) for one in planned for other in found if _is_end(one, other) or _is_end(other, one)]
    ones, others = Counter(one for one, _ in both), Counter(other for _, other in both)
    return {one: other for one, other in both if ones[one] == others[other] == 1}


def _is_end(one: str, other: str) -> bool:
    """Whether `one` is the end of the path `other`, or its beginning."""
    return f".{other}".endswith(f".{one}") or f"{other}.".startswith(f"{one}.")


def _ends(name: str) -> str:
    """The first number of a path, the word before it, and the last word."""
    parts = _tail(name).split(".")
    return ".".join([*parts[:2], parts[-1]]) if len(parts) > 2 else ""


def _unique(names: Sequence[str], key: Callable[[str], str]) -> dict[str, str]:
    counts = Counter(map(key, names))
    return {key(name): name for name in names if key(name) and counts[key(name)] == 1}
