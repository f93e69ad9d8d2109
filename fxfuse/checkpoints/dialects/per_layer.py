"""transformers' own way: {"per_layer_config": {"7": {"intermediate_size": 512, "skip": ["attention"]}}}.

Keys are numbers of layers, padded with zeros so that they sort; an entry overrides settings of the config for
its layer. `skip` names what the layer does not have: "attention", "mlp". Every family can be written so.
Source: transformers/integrations/heterogeneity/configuration_utils.py (5.23).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fxfuse.checkpoints.dialects.plain import own_of, renumbered, wrong
from fxfuse.checkpoints.records import Checkpoint, Layer, Layout, OutputLayer
from fxfuse.checkpoints.settings import count_of
from fxfuse.errors import InputError

__all__ = ["config_of", "layers_of", "objections", "without_attention"]

_KEY = "per_layer_config"
_ATTENTION, _FFN = ("attention", "self_attn"), ("mlp", "ffn")


def layers_of(config: Mapping[str, Any], place: str) -> tuple[Layer, ...]:
    """The layers as their entries say.

    Raises:
        InputError: An entry is of no layer, or skips what is not known.
    """
    count = count_of(config, "num_hidden_layers", place)
    entries = _entries(config.get(_KEY), count, place)
    return tuple(_layer(number, entries.get(number, {}), config, place) for number in range(count))


def _entries(found: Any, count: int, place: str) -> dict[int, dict[str, Any]]:
    if not isinstance(found, Mapping):
        raise InputError(f"The {_KEY} in {place} is no JSON object: give an entry by number of layer.")
    entries = {}
    for key, entry in found.items():
        if not str(key).isdecimal() or int(key) >= count:
            raise InputError(
                f"The {_KEY} in {place} has an entry for {key!r}: layers have the numbers 0 to {count - 1}."
            )
        if not isinstance(entry, Mapping):
            raise wrong(place, _KEY, int(key), f"is {entry!r}: give a JSON object")
        entries[int(key)] = dict(entry)
    return entries


def _layer(number: int, entry: dict[str, Any], config: Mapping[str, Any], place: str) -> Layer:
    skipped = entry.pop("skip", None) or []
    skipped = [skipped] if isinstance(skipped, str) else skipped
    for each in skipped:
        if each not in (*_ATTENTION, *_FFN):
            raise wrong(place, _KEY, number, f"skips {each!r}: known are attention and mlp")
    ffn = not any(each in _FFN for each in skipped)
    merged = {**config, **{"intermediate_size": entry.pop("intermediate_size", None)}}
    if merged["intermediate_size"] is None:
        merged = dict(config)
    width = count_of(merged, "intermediate_size", place) if ffn else 0
    return Layer(number, not any(each in _ATTENTION for each in skipped), ffn, width, entry)


def without_attention(config: Mapping[str, Any], layers: Collection[int]) -> dict[str, Any]:
    """The config with `layers` that skip attention too."""
    entries = {key: dict(entry) for key, entry in (config.get(_KEY) or {}).items()}
    names = {int(key): key for key in entries}
    for number in sorted(layers):
        entry = entries.setdefault(names.get(number, str(number)), {})
        skipped = entry.get("skip") or []
        entry["skip"] = ["attention", *([skipped] if isinstance(skipped, str) else skipped)]
    return {**config, _KEY: entries}


def objections(checkpoint: Checkpoint, layers: tuple[OutputLayer, ...]) -> list[str]:
    """Nothing: an entry overrides any setting."""
    del checkpoint, layers
    return []


def config_of(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any]:
    """The family's own config, and an entry for every layer that is not as it says."""
    config = renumbered(checkpoint, layout)
    usual = config.get("intermediate_size")
    digits = len(str(len(layout.layers) - 1))
    entries = {}
    for layer in layout.layers:
        entry = own_of(checkpoint, layer)
        if layer.ffn and layer.intermediate_size != usual:
            entry["intermediate_size"] = layer.intermediate_size
        skipped = ["attention"] * (not layer.attention) + ["mlp"] * (not layer.ffn)
        if skipped:
            entry["skip"] = skipped
        entry = {name: value for name, value in entry.items() if name == "skip" or value != config.get(name)}
        if entry:
            entries[str(layer.number).zfill(digits)] = entry
    return {**config, _KEY: entries} if entries else config
