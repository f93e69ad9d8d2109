"""The ways in which a config.json says that its layers differ: read into `Layer`s, and written.

    nemotron-nas       block_configs with ffn_mult           vLLM, TensorRT-LLM, llama.cpp, mlx-lm
    per_layer_config   {"7": {"skip": ["attention"]}}        transformers
    anymodel           block_configs with intermediate_size  Model-Optimizer
    llm-drop           drop_attn_list                        read only: it has no widths

A dialect is one module: `layers_of` reads; `objections` says what it has no place for, `config_of` writes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from fxfuse.checkpoints.dialects import anymodel, blocks, llm_drop, nemotron_nas, per_layer
from fxfuse.checkpoints.dialects.plain import plain_layers
from fxfuse.checkpoints.records import Checkpoint, Layer, Layout, OutputLayer
from fxfuse.errors import InputError

__all__ = [
    "WRITTEN", "config_of", "extra_files", "objections", "padding_of", "read_layers", "without_attention",
]  # fmt: skip


class _Writer(Protocol):
    """What a module offers whose dialect is written."""

    def objections(self, checkpoint: Checkpoint, layers: tuple[OutputLayer, ...]) -> list[str]:
        """What has no place in it."""

    def config_of(self, checkpoint: Checkpoint, layout: Layout) -> dict[str, Any]:
        """config.json."""


_READERS = {
    "nemotron-nas": nemotron_nas.layers_of,
    "per_layer_config": per_layer.layers_of,
    "anymodel": anymodel.layers_of,
    "llm-drop": llm_drop.layers_of,
}
_WITHOUT = {
    "nemotron-nas": blocks.without_attention,
    "per_layer_config": per_layer.without_attention,
    "anymodel": blocks.without_attention,
    "llm-drop": llm_drop.without_attention,
}
_WRITERS: Mapping[str, _Writer] = {
    "nemotron-nas": nemotron_nas,
    "per_layer_config": per_layer,
    "anymodel": anymodel,
}

WRITTEN: tuple[str, ...] = tuple(_WRITERS)
"""Dialects that a fused checkpoint can be written in."""


def read_layers(config: Mapping[str, Any], place: str) -> tuple[str, tuple[Layer, ...]]:
    """How a config says that layers differ ("plain": they do not), and its layers.

    Raises:
        InputError: It says so in two ways that contradict one another, or in a way that is not understood.
    """
    found = {name: _READERS[name](config, place) for name in _names_in(config)}
    if not found:
        return "plain", plain_layers(config, place)
    dialect, layers = next(iter(found.items()))
    for other, others in found.items():
        for one, same in zip(layers, others, strict=True):
            if (one.attention, one.ffn, one.intermediate_size) != (
                same.attention, same.ffn, same.intermediate_size
            ):  # fmt: skip
                raise InputError(
                    f"{place} says of layer {one.number} one thing in its {_KEYS[dialect]} and another in "
                    f"its {_KEYS[other]}: take one of them out."
                )
    return dialect, layers


def without_attention(config: Mapping[str, Any], layers: Collection[int]) -> dict[str, Any]:
    """A config that leaves out the attention of `layers` too, in every way in which it says such things."""
    found = dict(config)
    for name in _names_in(config) or ["per_layer_config"]:
        found = _WITHOUT[name](found, layers)
    return found


def objections(dialect: str, checkpoint: Checkpoint, layers: tuple[OutputLayer, ...]) -> list[str]:
    """What the dialect has no place for in these layers, each as a sentence without its end."""
    return _WRITERS[dialect].objections(checkpoint, layers)


def padding_of(dialect: str, intermediate_size: int) -> int:
    """Channels of zeros that a dialect asks for behind an FFN."""
    return nemotron_nas.padding_of(intermediate_size) if dialect == "nemotron-nas" else 0


def config_of(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any]:
    """The config.json of the fused checkpoint."""
    return _WRITERS[layout.dialect].config_of(checkpoint, layout)


def extra_files(layout: Layout) -> dict[str, str]:
    """Files that the dialect's readers want beside config.json: name and text."""
    return nemotron_nas.extra_files() if layout.dialect == "nemotron-nas" else {}


_KEYS = {
    "nemotron-nas": "block_configs",
    "per_layer_config": "per_layer_config",
    "anymodel": "block_configs",
    "llm-drop": "drop_attn_list",
}


def _names_in(config: Mapping[str, Any]) -> list[str]:
    found = []
    if config.get("model_type") == "nemotron-nas":
        found.append("nemotron-nas")
    elif config.get("block_configs"):
        found.append("anymodel")
    if config.get("per_layer_config"):
        found.append("per_layer_config")
    if config.get("drop_attn_list") or config.get("drop_mlp_list"):
        found.append("llm-drop")
    return found
