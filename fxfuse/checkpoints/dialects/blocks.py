"""What the two dialects of block_configs share: one entry a layer, {"attention": {...}, "ffn": {...}}.

A layer's width stands there as `intermediate_size` (AnyModel) or as `ffn_mult` (nemotron-nas), its key-value
heads as `num_key_value_heads` or as query heads to one of them (`n_heads_in_group`); either is understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxfuse.checkpoints.dialects.plain import wrong
from fxfuse.checkpoints.records import Layer
from fxfuse.checkpoints.settings import count_of
from fxfuse.errors import InputError

__all__ = ["MULTIPLE", "block_layers", "width_of"]

_KEY = "block_configs"
MULTIPLE = 256
"""What the width that an ffn_mult stands for is rounded up to."""

_REFUSED = {
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


def _layer(number: int, entry: Any, config: Mapping[str, Any], place: str) -> Layer:
    if not isinstance(entry, Mapping) or not all(
        isinstance(entry.get(name), Mapping) for name in ("attention", "ffn")
    ):
        raise wrong(place, _KEY, number, "has no JSON objects attention and ffn: give both")
    if entry.get("parallel_blocks"):
        raise wrong(place, _KEY, number, "has parallel blocks, which are not read: use another checkpoint")
    for part in (entry["attention"], entry["ffn"]):
        for name, told in _REFUSED.items():
            if part.get(name):
                raise wrong(place, _KEY, number, told)
    attention, ffn = (not entry[name].get("no_op") for name in ("attention", "ffn"))
    width = _width(number, entry["ffn"], config, place) if ffn else 0
    own = {"num_key_value_heads": _kv_heads(number, entry["attention"], config, place)} if attention else {}
    return Layer(number, attention, ffn, width, own)


def _width(number: int, ffn: Mapping[str, Any], config: Mapping[str, Any], place: str) -> int:
    width, ffn_mult = ffn.get("intermediate_size"), ffn.get("ffn_mult")
    if _is_number(width) and width == int(width) > 0:
        return int(width)
    if _is_number(ffn_mult) and ffn_mult > 0:
        return width_of(float(ffn_mult), count_of(config, "hidden_size", place))
    raise wrong(place, _KEY, number, "gives its FFN neither an ffn_mult nor an intermediate_size: give one")


def _kv_heads(number: int, attention: Mapping[str, Any], config: Mapping[str, Any], place: str) -> int:
    heads = count_of(config, "num_attention_heads", place)
    found, group = attention.get("num_key_value_heads"), attention.get("n_heads_in_group")
    if found is None and _is_number(group) and group > 0 and heads % group == 0:
        return int(heads // group)
    if _is_number(found) and found > 0 and heads % found == 0:
        return int(found)
    told = f"n_heads_in_group {group!r}" if found is None else f"num_key_value_heads {found!r}"
    raise wrong(place, _KEY, number, f"has {told}, which does not divide its {heads} heads: correct it")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
