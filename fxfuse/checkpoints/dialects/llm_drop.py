"""LLM-Drop: {"drop_attn_list": [25, 26, 24], "drop_mlp_list": []}, numbers of layers or one truth value each.

Read only: it has no place for a width. The tensors of what was dropped are often still in the files, and its
code ignores them. Source: arXiv 2406.15786 and the configs published with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fxfuse.checkpoints.records import Layer
from fxfuse.checkpoints.settings import count_of
from fxfuse.errors import InputError

__all__ = ["layers_of", "without_attention"]


def layers_of(config: Mapping[str, Any], place: str) -> tuple[Layer, ...]:
    """The layers without what the lists name.

    Raises:
        InputError: A list is none, or names a layer that is not there.
    """
    count = count_of(config, "num_hidden_layers", place)
    width = count_of(config, "intermediate_size", place)
    attention, ffn = (_dropped(config, name, count, place) for name in ("drop_attn_list", "drop_mlp_list"))
    return tuple(
        Layer(number, number not in attention, number not in ffn, 0 if number in ffn else width)
        for number in range(count)
    )


def without_attention(config: Mapping[str, Any], layers: Collection[int]) -> dict[str, Any]:
    """The config with `layers` among those whose attention is dropped."""
    count = count_of(config, "num_hidden_layers")
    gone = _dropped(config, "drop_attn_list", count, "config.json") | set(layers)
    return {**config, "drop_attn_list": sorted(gone)}


def _dropped(config: Mapping[str, Any], name: str, count: int, place: str) -> set[int]:
    found = config.get(name) or []
    if isinstance(found, list) and all(isinstance(each, bool) for each in found):
        if found and len(found) != count:
            raise InputError(
                f"{name} in {place} has {len(found)} truth values for {count} layers: correct it."
            )
        return {number for number, each in enumerate(found) if each}
    if not isinstance(found, list) or not all(isinstance(each, int) and 0 <= each < count for each in found):
        raise InputError(
            f"{name} in {place} is {found!r}: give numbers of layers from 0 to {count - 1}, or one truth "
            "value for each layer."
        )
    return set(found)
