"""What the two dialects of block_configs share: one entry a layer, {"attention": {...}, "ffn": {...}}.

Later versions of Model-Optimizer write the same as {"subblock_configs": [{"kind": "attention", ...}, ...]}.
A layer's width stands there as `intermediate_size` (AnyModel) or as `ffn_mult` (nemotron-nas), its key-value
heads as `num_key_value_heads`, as `num_kv_heads` or as query heads to one of them (`n_heads_in_group`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeGuard

from fxfuse.checkpoints.dialects.plain import wrong
from fxfuse.checkpoints.records import Layer
from fxfuse.checkpoints.settings import count_of
from fxfuse.errors import InputError

__all__ = ["MULTIPLE", "block_layers", "width_of", "without_attention"]

_KEY = "block_configs"
_HALVES = ("attention", "ffn")
MULTIPLE = 256
"""What the width that an ffn_mult stands for is rounded up to."""

_REFUSED = {
    "parallel_blocks": "has parallel blocks, which are not read: use another checkpoint",
    "mla": "has latent attention, which is not read: use another checkpoint",
    "replace_with_linear": "replaces a block by a linear product, which cannot be read here: use another "
    "checkpoint, or pass the model to fxfuse.fuse",
    "moe": "has experts, which cannot be fused: use another checkpoint",
    "mamba": "has a state space in place of attention, which cannot be read here: use another checkpoint",
    "llama4": "has attention of Llama 4, which cannot be read here: use another checkpoint",
    "window_length": "attends to a window (window_length), which no reader of this format builds: set it to "
    "null",
    "num_sink_tokens": "has sink tokens (num_sink_tokens), which no reader of this format builds: set it to "
    "null",
}


def width_of(ffn_mult: float, hidden_size: int) -> int:
    """The width that readers make of an ffn_mult: they round it to 6 decimals, and the width up."""
    width = int(2 * round(ffn_mult, 6) * hidden_size / 3)
    return width + -width % MULTIPLE


def block_layers(config: Mapping[str, Any], place: str) -> tuple[Layer, ...]:
    """The layers as their entries say.

    Raises:
        InputError: There are not as many entries as layers, or one holds what is not understood.
    """
    count = count_of(config, "num_hidden_layers", place)
    entries = config.get(_KEY)
    if not isinstance(entries, list):
        raise InputError(f"{place} has no {_KEY}, one for each of its {count} layers: correct it.")
    if len(entries) != count:
        raise InputError(f"{place} has {len(entries)} {_KEY} and {count} layers: correct one of them.")
    return tuple(_layer(number, entry, config, place) for number, entry in enumerate(entries))


def without_attention(config: Mapping[str, Any], layers: Collection[int]) -> dict[str, Any]:
    """The config with the attention of `layers` as one that does nothing."""
    entries = [_silenced(entry) if place in layers else entry for place, entry in enumerate(config[_KEY])]
    return {**config, _KEY: entries}


def _silenced(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry, in whichever form, whose attention does nothing."""
    parts = entry.get("subblock_configs")
    if not isinstance(parts, list):
        return {**entry, "attention": {**entry["attention"], "no_op": True}}
    silent = [{**part, "no_op": True} if part["kind"] == "attention" else part for part in parts]
    return {**entry, "subblock_configs": silent}


def _layer(number: int, entry: Any, config: Mapping[str, Any], place: str) -> Layer:
    found = _halves(number, entry, place)
    for part in (entry, *found.values()):
        for name, told in _REFUSED.items():
            if part.get(name):
                raise wrong(place, _KEY, number, told)
    attention, ffn = (not found[name].get("no_op") for name in _HALVES)
    width = _width(number, found["ffn"], config, place) if ffn else 0
    own = {"num_key_value_heads": _kv_heads(number, found["attention"], config, place)} if attention else {}
    return Layer(number, attention, ffn, width, own)


def _halves(number: int, entry: Any, place: str) -> dict[str, Mapping[str, Any]]:
    """What an entry says of attention and of the FFN, in whichever form."""
    found = entry if isinstance(entry, Mapping) else {}
    if isinstance(parts := found.get("subblock_configs"), list):
        found = {name: {"no_op": True} for name in _HALVES} | dict(_parts(number, parts, place))
    halves = {name: found.get(name) for name in _HALVES}
    if not all(isinstance(each, Mapping) for each in halves.values()):
        raise wrong(place, _KEY, number, "has no JSON objects attention and ffn: give both")
    return halves  # type: ignore[return-value]


def _parts(number: int, parts: list[Any], place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The subblocks that do something, by kind."""
    for part in parts:
        kind = part.get("kind") if isinstance(part, Mapping) else None
        if kind in _HALVES:
            yield kind, part
        elif kind is None or not part.get("no_op"):
            told = f"has a subblock of kind {kind!r}, which is not read: use another checkpoint"
            raise wrong(place, _KEY, number, _REFUSED.get(str(kind), told))


def _width(number: int, ffn: Mapping[str, Any], config: Mapping[str, Any], place: str) -> int:
    width, ffn_mult = ffn.get("intermediate_size"), ffn.get("ffn_mult")
    if _is_number(width) and width == int(width) > 0:
        return int(width)
    if _is_number(ffn_mult) and ffn_mult > 0:
        return width_of(float(ffn_mult), count_of(config, "hidden_size", place))
    raise wrong(place, _KEY, number, "gives its FFN neither an ffn_mult nor an intermediate_size: give one")


def _kv_heads(number: int, attention: Mapping[str, Any], config: Mapping[str, Any], place: str) -> int:
    """Key-value heads, from their number or from the query heads to each."""
    heads = count_of(config, "num_attention_heads", place)
    if attention.get("num_query_heads", heads) != heads:
        told = f"has {attention['num_query_heads']!r} query heads of its own"
        raise wrong(place, _KEY, number, f"{told}, which are not read: use another checkpoint")
    group = attention.get("n_heads_in_group")
    if _is_number(group):
        if group > 0 and heads % group == 0:
            return int(heads // group)
        raise wrong(
            place, _KEY, number, f"has n_heads_in_group {group}, and not a divisor of {heads}: correct it"
        )
    for name in ("num_key_value_heads", "num_kv_heads"):
        found = attention.get(name)
        if _is_number(found):
            if found > 0 and heads % found == 0:
                return int(found)
            raise wrong(place, _KEY, number, f"has {name} {found}, and not a divisor of {heads}: correct it")
    if config.get("model_type") == "nemotron-nas":
        raise wrong(place, _KEY, number, "has attention and no n_heads_in_group: give it, or set no_op")
    return count_of(config, "num_key_value_heads", place)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
