"""The configuration that transformers knows of a checkpoint's model, and how its layers depart from it.

    config.json, any dialect      one configuration of the family, which says what all layers share
                             ->   {layer: {"intermediate_size": W, "skip": ["attention"]}}

The latter is transformers' own way to write layers that differ (`per_layer_config`), so that what is loaded
from any dialect can be saved by `save_pretrained` and loaded again.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from fxfuse.checkpoints.records import Checkpoint, Layer
from fxfuse.checkpoints.tensors import DTYPES
from fxfuse.errors import InputError

__all__ = ["SKIP", "dtype_of", "layer_config", "overrides", "shared_config"]

SKIP = "skip"
"""Under this word transformers lists what a layer does not have: "attention", "mlp"."""

_DIALECTS = ("block_configs", "per_layer_config", "drop_attn_list", "drop_mlp_list")
_OTHERS = ("model_type", "architectures", "auto_map", "transformers_version", "_name_or_path", "torch_dtype")
_LEFT_TO_LAYERS = ("intermediate_size", "num_key_value_heads")
_LLAMA = "nemotron-nas"


def shared_config(checkpoint: Checkpoint) -> Any:
    """What all layers share, as transformers' configuration of the family.

    A nemotron-nas checkpoint is a Llama whose layers differ. What its config leaves open, since it is said
    layer by layer, is what most layers have.

    Raises:
        InputError: transformers does not take a value.
    """
    from transformers import CONFIG_MAPPING

    kind = checkpoint.family.model_type
    words = {name: value for name, value in checkpoint.config.items() if name not in (*_DIALECTS, *_OTHERS)}
    for name, value in _common(checkpoint.layers).items():
        if words.get(name) is None:
            words[name] = value
    try:
        return CONFIG_MAPPING["llama" if kind == _LLAMA else kind].from_dict(words)
    except Exception as error:  # its checks raise many kinds of errors
        told = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(
            f"transformers does not take the config.json of {checkpoint.folder} ({told}): correct it."
        ) from error


def _common(layers: tuple[Layer, ...]) -> dict[str, Any]:
    """What most layers say of themselves, of what a config may leave to them."""
    found: dict[str, Any] = {}
    for name in _LEFT_TO_LAYERS:
        values = Counter(said[name] for said in map(_said, layers) if said.get(name) is not None)
        found |= {name: values.most_common(1)[0][0]} if values else {}
    return found


def _said(layer: Layer) -> dict[str, Any]:
    width = {"intermediate_size": layer.intermediate_size} if layer.ffn else {}
    return {**layer.own, **width}


def overrides(checkpoint: Checkpoint, config: Any) -> dict[int, dict[str, Any]]:
    """How layers depart from what `shared_config` gave, in the words of `per_layer_config`."""
    found: dict[int, dict[str, Any]] = {}
    for layer in checkpoint.layers:
        own = {name: value for name, value in _said(layer).items() if getattr(config, name, None) != value}
        gone = [word for word, there in (("attention", layer.attention), ("mlp", layer.ffn)) if not there]
        own |= {SKIP: gone} if gone else {}
        found |= {layer.number: own} if own else {}
    return found


def layer_config(config: Any, own: Mapping[str, Any]) -> Any:
    """The configuration that one layer is built from."""
    made = copy.copy(config)
    for name, value in own.items():
        if name != SKIP:
            setattr(made, name, value)
    return made


def dtype_of(checkpoint: Checkpoint, dtype: torch.dtype | str | None) -> torch.dtype:
    """The type to load weights in: as told, else as the config says, else as the first weights are stored.

    Raises:
        InputError: There is no such type, or it holds no real numbers.
    """
    told = dtype
    if told is None or told == "auto":
        told = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    if told is None:
        stored = (DTYPES[each.dtype] for each in checkpoint.tensors.values())
        told = next((each for each in stored if each.is_floating_point), torch.float32)
    found = getattr(torch, told.removeprefix("torch."), None) if isinstance(told, str) else told
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(
            f"Weights cannot be loaded as {told}: give dtype= as float32, float16, bfloat16 or float64."
        )
    return found
