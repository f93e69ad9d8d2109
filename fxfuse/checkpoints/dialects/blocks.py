"""What the two dialects of block_configs share: one entry a layer, {"attention": {...}, "ffn": {...}}.

Later versions of Model-Optimizer write the same as {"subblock_configs": [{"kind": "attention", ...}, ...]}.
A layer's width stands there as `intermediate_size` (AnyModel) or as `ffn_mult` (nemotron-nas), its key-value
heads as `num_key_value_heads`, as `num_kv_heads` or as query heads to one of them (`n_heads_in_group`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from fxfuse.checkpoints.dialects.plain import wrong
from fxfuse.checkpoints.records import Layer
from fxfuse.checkpoints.settings import count_of
from fxfuse.errors import InputError

__all__ = ["MULTIPLE", "block_layers", "width_of"]

_KEY = "block_configs"
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


def _layer(number: int, entry: Any, config: Mapping[str, Any], place: str) -> Layer:
    halves = _halves(entry) if isinstance(entry, Mapping) else None
    if halves is None:
        raise wrong(place, _KEY, number, "has no JSON objects attention and ffn: give both")
    for part in (entry, *halves):
        for name, told in _REFUSED.items():
            if part.get(name):
                raise wrong(place, _KEY, number, told)
    attention, ffn = halves
    has_attention, has_ffn = not attention.get("no_op"), not ffn.get("no_op")
    width = _width(number, ffn, config, place) if has_ffn else 0
    own = {"num_key_value_heads": _kv_heads(number, attention, config, place)} if has_attention else {}
    return Layer(number, has_attention, has_ffn, width, own)


def _halves(entry: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """What an entry says of attention and of the FFN; None where it is no entry."""
    found = entry
    if isinstance(parts := entry.get("subblock_configs"), list):
        found = {"attention": {"no_op": True}, "ffn": {"no_op": True}}
        for part in parts:
            kind = part.get("kind") if isinstance(part, Mapping) else None
            if not isinstance(kind, str):
                return None
            if kind not in found and not part.get("no_op"):
                found["ffn"] = {kind: True}  # told below as what cannot be read
            elif kind in found:
                found[kind] = part
    halves = found.get("attention"), found.get("ffn")
    return halves if all(isinstance(each, Mapping) for each in halves) else None  # type: ignore[return-value]


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
        raise wrong(place, _KEY, number, f"has n_heads_in_group {group}, and not a divisor of {heads}")
    for name in ("num_key_value_heads", "num_kv_heads"):
        found = attention.get(name)
        if _is_number(found):
            if found > 0 and heads % found == 0:
                return int(found)
            raise wrong(place, _KEY, number, f"has {name} {found}, and not a divisor of {heads}")
    if config.get("model_type") == "nemotron-nas":
        raise wrong(place, _KEY, number, "has attention and no n_heads_in_group: give it, or set no_op")
    return count_of(config, "num_key_value_heads", place)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
