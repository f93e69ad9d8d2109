"""What all dialects share: layers that do not differ, and a config whose layers were numbered anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fxfuse.checkpoints.records import Checkpoint, Layer, Layout, OutputLayer
from fxfuse.checkpoints.settings import count_of, kv_heads, setting
from fxfuse.errors import InputError

__all__ = ["commonest", "output_kv_heads", "own_of", "plain_layers", "renumbered", "wrong"]

_DIALECTS = ("auto_map", "block_configs", "drop_attn_list", "drop_mlp_list", "per_layer_config")
_BY_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers", "num_key_value_heads_per_layer")
_SLIDING = ("qwen2", "qwen3")


def plain_layers(config: Mapping[str, Any], place: str) -> tuple[Layer, ...]:
    """As many layers as the config says, all of them whole."""
    width = count_of(config, "intermediate_size", place)
    return tuple(
        Layer(number, attention=True, ffn=True, intermediate_size=width)
        for number in range(count_of(config, "num_hidden_layers", place))
    )


def wrong(place: str, key: str, layer: int, told: str) -> InputError:
    """What is said of a layer's entry that is not understood."""
    return InputError(f"The {key} of layer {layer} in {place} {told}.")


def renumbered(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any]:
    """The source's config with as many layers as the layout has, and nothing of any dialect.

    Code that came with the source built its own layers, so `auto_map` goes with its dialect.
    """
    config = dict(checkpoint.config)
    config |= _layer_types(config)
    config = {name: value for name, value in config.items() if name not in _DIALECTS}
    config["num_hidden_layers"] = len(layout.layers)
    firsts = [layer.sources[0] for layer in layout.layers]
    for name in _BY_LAYER:
        values = config.get(name)
        if isinstance(values, list) and len(values) == len(checkpoint.layers):
            config[name] = [values[number] for number in firsts]
    if checkpoint.family.model_type == "nemotron-nas" and layout.dialect != "nemotron-nas":
        config |= _as_llama(checkpoint, layout)
    return config


def _layer_types(config: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers look back over a window only, written out where a number of layers tells it.

    Qwen's `max_window_layers` counts layers, and would mean others once they are numbered anew.
    """
    if config.get("model_type") not in _SLIDING or config.get("layer_types") is not None:
        return {}
    if not setting(config, "use_sliding_window") or setting(config, "sliding_window") is None:
        return {}
    full = int(setting(config, "max_window_layers"))
    count = count_of(config, "num_hidden_layers")
    return {"layer_types": ["full_attention" if n < full else "sliding_attention" for n in range(count)]}


def _as_llama(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any]:
    """What a config of block_configs leaves open at its top level."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "intermediate_size": commonest(layer.intermediate_size for layer in layout.layers if layer.ffn),
        "num_key_value_heads": commonest(
            output_kv_heads(checkpoint, layer) for layer in layout.layers if layer.attention
        ),
    }


def commonest(values: Iterable[int]) -> int:
    """The value that is there most often, the first of several."""
    return Counter(values).most_common(1)[0][0]


def output_kv_heads(checkpoint: Checkpoint, layer: OutputLayer) -> int:
    """Key-value heads of an output layer's attention."""
    return kv_heads(checkpoint, checkpoint.layers[layer.sources[0]])


def own_of(checkpoint: Checkpoint, layer: OutputLayer) -> dict[str, Any]:
    """What the source's config says of an output layer alone, besides width and what is absent."""
    own = dict(checkpoint.layers[layer.sources[0]].own)
    if not layer.attention:
        own.pop("num_key_value_heads", None)
    return own
