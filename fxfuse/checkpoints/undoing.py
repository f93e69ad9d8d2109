"""The way back: where in the fused checkpoint every tensor of the source lies, as recipes and as JSON.

    gate_up = [ gate_1 diag(g_1) ]      gate_1 = rows 0 to n of gate_up, divided by g_1
              [ gate_2 diag(g_2) ]      g_1    = kept aside, since the fused norm has unit gain

A source tensor that no output holds is kept aside as its bytes if it is small, as gains and biases are;
larger ones, of attention that the source's config already left out, are not given back.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from fxfuse.checkpoints.folding import rows_of, width_of
from fxfuse.checkpoints.records import Copy, Given, OutputTensor, Part, Stacked
from fxfuse.checkpoints.tensors import Stored, Tensors, bytes_of

__all__ = ["read_undo", "undo_of"]

_SMALL = 1 << 20  # bytes: the gain of a hidden size of half a million


def undo_of(tensors: Tensors, made: Iterable[OutputTensor], removed: Collection[str] = ()) -> dict[str, Any]:
    """How each tensor of the source is got back from the outputs, as JSON data.

    Tensors that were `removed` by name are dropped, however small.

    {"tensors": {name: {"dtype", "shape", "file", "parts" or "data"}}, "dropped": [names]}
    """
    found: dict[str, list[tuple[int, int, Part]]] = defaultdict(list)
    for output in made:
        for source, start, stop, part in _back(output, tensors):
            found[source].append((start, stop, part))
    entries: dict[str, Any] = {}
    dropped = []
    for home in sorted(
        map(tensors.home_of, tensors), key=lambda each: (tensors.path_of(each.file), each.start)
    ):
        stored = tensors[home.name]
        parts = _covering(stored, found[stored.name])
        if parts is None and (stored.nbytes > _SMALL or stored.name in removed):
            dropped.append(stored.name)
            continue
        entries[stored.name] = _entry(stored, tensors, parts)
    return {"tensors": entries, "dropped": dropped}


def read_undo(data: Mapping[str, Any]) -> list[OutputTensor]:
    """The source's tensors, made from those of the fused checkpoint.

    Raises:
        KeyError, TypeError, ValueError: The data are not what `undo_of` gave.
    """
    entries = data["tensors"]
    return [
        OutputTensor(name, entry["dtype"], tuple(entry["shape"]), _recipe(entry, entries), entry["file"])
        for name, entry in entries.items()
    ]


def _back(output: OutputTensor, tensors: Tensors) -> Iterator[tuple[str, int, int, Part]]:
    """Which rows of which source tensor an output gives back."""
    recipe = output.recipe
    if isinstance(recipe, Copy):
        recipe = Stacked(((Part(recipe.source, recipe.rows, factor=recipe.factor),),), 0)
    if not isinstance(recipe, Stacked):
        return
    place = 0
    for run in recipe.runs:
        for part in run:
            start, stop = rows_of(part, tensors)
            size = stop - start if recipe.axis == 0 else width_of(part, tensors)
            span = (place, place + size)
            rows, columns = (None, span) if recipe.axis else (span, None)
            back = replace(part, source=output.name, rows=rows, columns=columns, divided=True)
            yield part.source, start, stop, back
            place += size
        place += recipe.padding


def _covering(stored: Stored, found: list[tuple[int, int, Part]]) -> list[Part] | None:
    """Parts that together are the whole tensor; None where rows are missing."""
    parts, reached = [], 0
    for start, stop, part in sorted(found, key=lambda each: (each[0], each[2].factor != 1.0)):
        if start == reached and stop > start:
            parts.append(part)
            reached = stop
    return parts if reached == (stored.shape[0] if stored.shape else 1) else None


def _entry(stored: Stored, tensors: Tensors, parts: list[Part] | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"dtype": stored.dtype, "shape": list(stored.shape)}
    entry["file"] = tensors.path_of(tensors.home_of(stored.name).file)
    if parts is None:
        data = bytes(bytes_of(tensors.read(stored.name)))
        return entry | {"data": b64encode(data).decode()}
    return entry | {"parts": [_plain(part) for part in parts]}


def _plain(part: Part) -> dict[str, Any]:
    """A part as JSON, without what is as usual."""
    found = {
        "from": part.source, "rows": part.rows, "columns": part.columns, "gain": part.gain,
        "gain_offset": part.gain_offset or None, "factor": None if part.factor == 1.0 else part.factor,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _recipe(entry: Mapping[str, Any], entries: Mapping[str, Any]) -> Stacked | Given:
    if "data" in entry:
        return _given(entry)
    return Stacked((tuple(_part(each, entries) for each in entry["parts"]),), 0)


def _given(entry: Mapping[str, Any]) -> Given:
    return Given(entry["dtype"], tuple(entry["shape"]), b64decode(entry["data"], validate=True))


def _part(data: Mapping[str, Any], entries: Mapping[str, Any]) -> Part:
    rows, columns = (tuple(data[name]) if name in data else None for name in ("rows", "columns"))
    gain = _given(entries[data["gain"]]) if "gain" in data else None
    offset, factor = float(data.get("gain_offset", 0.0)), float(data.get("factor", 1.0))
    return Part(data["from"], rows, gain, offset, factor, columns, divided=True)
