"""NVIDIA's nemotron-nas (DeciLMForCausalLM): Llama's layers, each with its own width and heads, or without.

    {"attention": {"n_heads_in_group": 8, "no_op": false, ...},
     "ffn": {"ffn_mult": 5.25, "no_op": false, ...}}

    width = int(2 ffn_mult hidden / 3), rounded up to a multiple of 256

Read by vLLM, TensorRT-LLM, llama.cpp and mlx-lm, which insist on more than they say:

1. ffn_mult is a JSON float, and two of them round it to 6 decimals.
2. The first layer has attention: vLLM's first norm and llama.cpp's head sizes come from it.
3. No layer is attention alone: llama.cpp leaves its attention out.
4. A head has hidden / heads channels, and the activation is silu.

Families that are Llama with other names are written as such: packed products are taken apart, and Granite's
multipliers go into the weights that they follow (`fxfuse.checkpoints.dialects.factors`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from fxfuse.checkpoints.dialects.blocks import MULTIPLE, block_layers
from fxfuse.checkpoints.dialects.factors import factors_of
from fxfuse.checkpoints.dialects.plain import commonest, output_kv_heads, own_of, renumbered
from fxfuse.checkpoints.records import Checkpoint, Layer, Layout, OutputLayer
from fxfuse.checkpoints.settings import count_of, rope_of, setting, sliding_window
from fxfuse.checkpoints.tensors import DTYPES

__all__ = [
    "ROPES", "config_of", "extra_files", "ffn_mult_of", "layers_of", "objections",
    "padding_of",
]  # fmt: skip

ROPES = ("default", "linear", "dynamic", "llama3", "yarn")
"""Rotary embeddings that at least one reader builds from rope_theta and rope_scaling."""

_CODE = "configuration_decilm"

_ATTENTION: Mapping[str, Any] = {
    "n_heads_in_group": None, "no_op": False, "num_sink_tokens": None, "replace_with_linear": False,
    "sparsify": None, "unshifted_sink": False, "use_prefill_window_in_sink_attention": False,
    "window_length": None,
}  # fmt: skip
_FFN: Mapping[str, Any] = {"ffn_mult": None, "no_op": False, "replace_with_linear": False, "sparsify": None}

_OTHERS = (
    "attention_multiplier", "dtype", "embd_pdrop", "embedding_multiplier", "layer_types", "logits_scaling",
    "original_max_position_embeddings", "partial_rotary_factor", "resid_pdrop", "residual_multiplier",
    "rope_parameters", "sliding_window", "transformers_version",
)  # fmt: skip
"""Keys of other families, whose meaning is in the weights or at its default by now, and of newer names."""


def layers_of(config: Mapping[str, Any], place: str) -> tuple[Layer, ...]:
    """The layers as their block_configs say."""
    return block_layers(config, place)


def padding_of(intermediate_size: int) -> int:
    """Channels of zeros up to the next width that an ffn_mult can stand for."""
    return -intermediate_size % MULTIPLE


def ffn_mult_of(intermediate_size: int, hidden_size: int) -> float:
    """An ffn_mult that readers make `intermediate_size` of, a multiple of 256.

    Its 6 decimals move 2 ffn_mult hidden / 3 by less than hidden / 3,000,000: less than one channel, which is
    cut off above a multiple of 256 and rounded up below one.
    """
    return round(1.5 * intermediate_size / hidden_size, 6)


def objections(checkpoint: Checkpoint, layers: tuple[OutputLayer, ...]) -> list[str]:
    """What Llama's layers or this dialect's readers have no place for."""
    config, found = checkpoint.config, []
    if checkpoint.family.llama is not None:
        found.append(f"it holds Llama's layers alone, and {checkpoint.family.llama}")
    heads, size = count_of(config, "num_attention_heads"), int(setting(config, "head_dim"))
    if heads * size != checkpoint.hidden_size:
        found.append(
            f"a head has {checkpoint.hidden_size} / {heads} channels in it, and here it has {size} (head_dim)"
        )
    if (act := setting(config, "hidden_act")) not in ("silu", "swish"):
        found.append(f"its readers know the activation silu, and here it is {act}")
    if (window := sliding_window(config)) is not None:
        found.append(f"its attention looks back over all, and here over {window} tokens (sliding_window)")
    return found + _rope_objections(rope_of(config)) + _layer_objections(checkpoint, layers)


def _rope_objections(rope: Mapping[str, Any]) -> list[str]:
    found = []
    if rope["rope_type"] not in ROPES:
        found.append(
            f"its readers know the rotary embeddings {', '.join(ROPES)}, and not {rope['rope_type']}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        found.append(
            f"its rotary embeddings turn whole heads, and here a part (partial_rotary_factor "
            f"{rope['partial_rotary_factor']})"
        )
    return found


def _layer_objections(checkpoint: Checkpoint, layers: tuple[OutputLayer, ...]) -> list[str]:
    found = []
    if layers and not layers[0].attention:
        found.append(f"its first layer has attention, and layer {layers[0].sources[0]} here has none")
    for layer in layers:
        if not layer.ffn:
            found.append(f"a layer with attention has an FFN in it, and layer {layer.sources[0]} has none")
        other = sorted(set(own_of(checkpoint, layer)) - {"num_key_value_heads"})
        if other:
            found.append(f"it has no place for the {other[0]} that layer {layer.sources[0]} has of its own")
    return found


def config_of(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any]:
    """A config of DeciLMForCausalLM; rope_theta and rope_scaling stand at its top level as readers want."""
    source = checkpoint.config
    config = {name: value for name, value in renumbered(checkpoint, layout).items() if name not in _OTHERS}
    factors = factors_of(source)
    config |= {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{_CODE}.DeciLMConfig"},
        "block_configs": [_block(checkpoint, layer) for layer in layout.layers],
        "intermediate_size": commonest(layer.intermediate_size for layer in layout.layers),
        "num_key_value_heads": commonest(
            output_kv_heads(checkpoint, layer) for layer in layout.layers if layer.attention
        ),
        "tie_word_embeddings": bool(setting(source, "tie_word_embeddings")) and factors.tied,
        "torch_dtype": source.get("dtype") or source.get("torch_dtype") or _stored_dtype(checkpoint),
        **{name: setting(source, name) for name in _WRITTEN_OUT},
        **_rope(rope_of(source)),
    }
    return config


_WRITTEN_OUT = (
    "attention_bias", "hidden_act", "max_position_embeddings", "mlp_bias", "rms_norm_eps", "vocab_size",
)  # fmt: skip
"""Settings whose defaults differ between families and readers."""


def _stored_dtype(checkpoint: Checkpoint) -> str:
    """The type of the embeddings, as torch calls it."""
    return str(DTYPES[checkpoint.tensors["model.embed_tokens.weight"].dtype]).removeprefix("torch.")


def _rope(rope: dict[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling; llama.cpp looks for the old context at the top level."""
    scaling = {
        name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")
    }
    found: dict[str, Any] = {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    if scaling["rope_type"] == "default":
        found["rope_scaling"] = None
    elif "original_max_position_embeddings" in scaling:
        found["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    return found


def extra_files() -> dict[str, str]:
    """The configuration class, as code that vLLM and TensorRT-LLM take from the folder."""
    text = resources.files(__package__).joinpath(f"{_CODE}.py").read_text(encoding="utf-8")
    return {f"{_CODE}.py": text}


def _block(checkpoint: Checkpoint, layer: OutputLayer) -> dict[str, Any]:
    attention = {**_ATTENTION, "no_op": not layer.attention}
    if layer.attention:
        heads = count_of(checkpoint.config, "num_attention_heads")
        attention["n_heads_in_group"] = heads // output_kv_heads(checkpoint, layer)
    ffn = {**_FFN, "ffn_mult": ffn_mult_of(layer.intermediate_size, checkpoint.hidden_size)}
    return {"attention": attention, "ffn": ffn}
