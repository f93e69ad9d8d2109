"""Model-Optimizer's AnyModel: the family's own config with block_configs, a file for each half of a layer.

    {"attention": {"no_op": false, "num_key_value_heads": 8},
     "ffn": {"no_op": false, "intermediate_size": 512}}

    subblocks_safetensors/embeddings.safetensors, block_0_attention.safetensors, block_0_ffn.safetensors, ...,
    lm_head.safetensors (with the last norm), all in the index

Source: NVIDIA/Model-Optimizer, modelopt/torch/puzzletron: block_config.py, tools/checkpoint_utils_hf.py and
anymodel/models/*/*_model_descriptor.py, which hold a family each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxfuse.checkpoints.dialects.blocks import block_layers
from fxfuse.checkpoints.dialects.plain import output_kv_heads, own_of, renumbered
from fxfuse.checkpoints.records import Checkpoint, Layer, Layout, OutputLayer

__all__ = ["DESCRIBED", "config_of", "file_of", "layers_of", "objections"]

DESCRIBED = ("llama", "mistral", "nemotron-nas", "qwen2", "qwen3")
"""Families of which Model-Optimizer has a descriptor; nemotron-nas is written as llama."""

_FOLDER = "subblocks_safetensors"


def layers_of(config: Mapping[str, Any], place: str) -> tuple[Layer, ...]:
    """The layers as their block_configs say."""
    return block_layers(config, place)


def objections(checkpoint: Checkpoint, layers: tuple[OutputLayer, ...]) -> list[str]:
    """What its block_configs or its readers have no place for."""
    family, found = checkpoint.family.model_type, []
    if family not in DESCRIBED:
        found.append(f"Model-Optimizer describes {', '.join(DESCRIBED)}, and not {family}")
    for layer in layers:
        other = sorted(set(own_of(checkpoint, layer)) - {"num_key_value_heads"})
        if other:
            found.append(f"it has no place for the {other[0]} that layer {layer.sources[0]} has of its own")
    return found


def config_of(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any]:
    """The family's own config with a block_config for every layer."""
    return {
        **renumbered(checkpoint, layout),
        "block_configs": [_block(checkpoint, layer) for layer in layout.layers],
    }


def _block(checkpoint: Checkpoint, layer: OutputLayer) -> dict[str, Any]:
    attention: dict[str, Any] = {"no_op": not layer.attention}
    if layer.attention:
        attention["num_key_value_heads"] = output_kv_heads(checkpoint, layer)
    ffn: dict[str, Any] = {"no_op": not layer.ffn}
    if layer.ffn:
        ffn["intermediate_size"] = layer.intermediate_size
    return {"attention": attention, "ffn": ffn}


def file_of(layer: int | None, part: str) -> str:
    """Where a tensor stands: `part` is attention or ffn in a layer, else embeddings or lm_head."""
    return f"{_FOLDER}/{part if layer is None else f'block_{layer}_{part}'}.safetensors"
