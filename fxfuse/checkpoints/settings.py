"""What a config.json says, and what it leaves to the defaults of its family's configuration class.

Keys may be absent where they are at their default, and one key has had two names (rope_scaling became
rope_parameters, torch_dtype became dtype). Defaults are those of transformers' configuration classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxfuse.checkpoints.records import Checkpoint, Layer
from fxfuse.errors import InputError

__all__ = ["ACTIVATIONS", "count_of", "kv_heads", "multiplier", "rope_of", "setting", "sliding_window"]

ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu",
    "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
)  # fmt: skip
"""The names of transformers' ACT2FN (5.23), which takes seconds to import."""

_COMMON: Mapping[str, Any] = {
    "attention_bias": False, "attention_multiplier": 1.0, "embedding_multiplier": 1.0, "hidden_act": "silu",
    "logits_scaling": 1.0, "max_position_embeddings": 2048, "mlp_bias": False, "residual_multiplier": 1.0,
    "rms_norm_eps": 1e-6, "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip

_OWN: Mapping[str, Mapping[str, Any]] = {
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {
        "max_position_embeddings": 32768, "max_window_layers": 28, "num_key_value_heads": 32,
        "sliding_window": 4096, "use_sliding_window": False, "vocab_size": 151936,
    },
    "qwen3": {
        "head_dim": 128, "max_position_embeddings": 32768, "max_window_layers": 28, "num_key_value_heads": 32,
        "sliding_window": 4096, "use_sliding_window": False, "vocab_size": 151936,
    },
    "phi3": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064},
    "gemma": {
        "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
        "num_key_value_heads": 16, "tie_word_embeddings": True, "vocab_size": 256000,
    },
}  # fmt: skip

_ROPE_KEYS = ("rope_parameters", "rope_scaling")


def setting(config: Mapping[str, Any], name: str) -> Any:
    """The value of a key, or its default in the configuration class of the config's model type.

    The size of a head and the number of key-value heads come from the others where they are null.
    """
    own = _OWN.get(str(config.get("model_type")), {})
    value = config[name] if name in config else own.get(name, _COMMON.get(name))
    if value is None and name == "head_dim":
        return count_of(config, "hidden_size") // count_of(config, "num_attention_heads")
    if value is None and name == "num_key_value_heads":
        return count_of(config, "num_attention_heads")
    return value


def count_of(config: Mapping[str, Any], name: str, place: str = "config.json") -> int:
    """A positive whole number.

    Raises:
        InputError: It is not there, or is something else.
    """
    value = setting(config, name) if name in ("head_dim", "num_key_value_heads") else config.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    told = f"gives {name} as {value!r}" if name in config else f"has no {name}"
    raise InputError(f"{place} {told}, which must be a positive whole number: correct it.")


def multiplier(config: Mapping[str, Any], name: str) -> float:
    """One of Granite's multipliers; 1.0 in other families."""
    return float(setting(config, name)) if config.get("model_type") == "granite" else 1.0


def kv_heads(checkpoint: Checkpoint, layer: Layer) -> int:
    """Key-value heads of a layer's attention."""
    return int(layer.own.get("num_key_value_heads", setting(checkpoint.config, "num_key_value_heads")))


def sliding_window(config: Mapping[str, Any]) -> int | None:
    """How far attention looks back, where that is less than all: tokens, None where it is all."""
    window = setting(config, "sliding_window")
    if window is None or setting(config, "use_sliding_window") is False:
        return None
    return int(window) if int(window) < int(setting(config, "max_position_embeddings")) else None


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary embeddings in today's words: rope_theta, rope_type, partial_rotary_factor where there is one."""
    found: dict[str, Any] = {}
    for key in _ROPE_KEYS:
        found |= config.get(key) or {}
    kind = found.pop("type", None)
    found.setdefault("rope_type", kind or "default")
    found.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    if "partial_rotary_factor" in config:
        found.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    return found
