"""The model builder of onnxruntime-genai, for decoders whose layers differ.

    layer with attention    x = x + attention(norm(x));  x = x + ffn(norm(x))    as the builder writes it
    layer without                                        x = x + ffn(norm(x))    the second half alone
    cache of layer 7, the fourth that has one:           past_key_values.3.key, present.3.key

The builder's own classes write every operator, so that a fused model has the ones that are fast there:
GroupQueryAttention with its rotation inside, Skip norms, MatMulNBits. Added is what differs: halves that are
missing, each layer's own width, and caches that are counted. It reads an object with weights, which here is a
`Decoder`. The builder: https://github.com/microsoft/onnxruntime-genai/tree/main/src/python/py/models
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from fxfuse.errors import FxfuseError, InputError
from fxfuse.genai.decoder import Decoder, DecoderLayer
from fxfuse.progress import Progress, silent, track
from fxfuse.removal.genai import follow

__all__ = ["FAMILIES", "load_builder", "make_writer"]

FAMILIES = {
    "gemma": "GemmaModel",
    "granite": "GraniteModel",
    "llama": "LlamaModel",
    "mistral": "MistralModel",
    "phi3": "Phi3MiniModel",
    "qwen2": "QwenModel",
    "qwen3": "Qwen3Model",
}
"""The builder's class by the model type of the configuration; as its create_model chooses by architecture."""

_LONG = {"phi3": "Phi3MiniLongRoPEModel"}
_NEEDED = (
    "make_rotary_embedding_caches_from_scratch",
    "make_cache_names",
    "make_key_value_cache_shape",
    "update_genai_config",
    "resolve_special_token_ids",
)


def load_builder() -> Any:
    """The module onnxruntime_genai.models.builder.

    Raises:
        FxfuseError: It is not installed, is older than what is written for here, or cannot be imported.
    """
    try:
        builder = importlib.import_module("onnxruntime_genai.models.builder")
    except Exception as error:  # it imports much, and a library of CUDA that is missing is no ImportError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise FxfuseError(
            f"The model builder of onnxruntime-genai cannot be imported ({reason}): install it "
            "with pip install 'fxfuse[genai]', or onnxruntime-genai 0.18 or newer where there is no CUDA."
        ) from error
    if not all(hasattr(getattr(builder, "LlamaModel", None), name) for name in _NEEDED):
        raise FxfuseError("The installed onnxruntime-genai is too old for this: install 0.18 or newer.")
    return builder


def make_writer(
    decoder: Decoder, config: Any, precision: str, provider: str, progress: Progress = silent
) -> Any:
    """An object of the builder: `make_model("")`, `save_model`, `make_genai_config` and `save_processing`.

    Args:
        decoder: What it will write.
        config: What `builder_config` made.
        precision: "fp32", "fp16", "bf16", "int8" or "int4", the last two by the builder's defaults.
        provider: "cpu" or "cuda".
        progress: Called at every layer.

    Raises:
        InputError: The family is not known, or rotates in a way that the builder has no operator for.
    """
    builder = load_builder()
    # Caches that hold a window alone fail where a text is to be shorter than it.
    options: dict[str, Any] = {"filename": "model.onnx", "hf_token": None, "windowed_kv_cache": False}
    if decoder.tied:  # the builder's default for such models
        options |= {"shared_embeddings": True, "op_types_to_quantize": ("MatMul", "Gather")}
    stock = _stock(builder, decoder.config)
    parts = {"decoder": decoder, "stock": stock, "progress": progress}
    kind: Callable[..., Any] = type(f"Fused{stock.__name__}", (_Fused, stock), parts)
    types = builder.set_io_dtype(precision, provider, options), builder.set_onnx_dtype(precision, options)
    return kind(config, *types, provider, "", options)


def _stock(builder: Any, config: Any) -> Any:
    kind = config.model_type
    if kind not in FAMILIES:
        raise InputError(
            f"Decoders of {kind} cannot be exported for ONNX Runtime GenAI; known are {', '.join(FAMILIES)}."
        )
    rotation = config.rope_parameters["rope_type"]
    if rotation == "dynamic" or (rotation == "longrope" and kind not in _LONG):
        raise InputError(
            f"The model rotates positions by {rotation} scaling, which depends on the length of the text and "
            f"which ONNX Runtime GenAI's operators do not know for {kind}: fuse a file of torch.onnx instead."
        )
    return getattr(builder, _LONG[kind] if rotation == "longrope" else FAMILIES[kind])


class _Fused:
    """What comes before the builder's class `stock`. `self` is Any, since that has no types."""

    decoder: Decoder
    stock: Any
    progress: Any  # a function, held in a class: called through the class

    def make_rope_init(self: Any, config: Any) -> None:
        """Frequencies are the model's own, except where there are two tables of them."""
        if config.rope_parameters["rope_type"] == "longrope":
            self.stock.make_rope_init(self, config)

    def make_rotary_embedding_caches_from_scratch(self: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines by position: [context, frequencies, twice]."""
        frequencies, scale = self.decoder.frequencies, self.decoder.rotation_scale
        angles = torch.outer(torch.arange(self.rope_attrs["cache_length"]).float(), frequencies)
        both = torch.cat((angles, angles), dim=-1)
        return both.cos() * scale, both.sin() * scale

    def make_cache_names(self: Any, valid_layer_types: Any, input_format_name: str) -> dict[int, str]:
        """The names of one kind of cache by layer, counted over the layers that have one."""
        prefix, kind = input_format_name.rsplit(".", 1)
        if "full_attention" not in valid_layer_types:
            return {}
        return {layer: f"{prefix}.{cache}.{kind}" for layer, cache in self.decoder.caches.items()}

    def make_key_value_cache_shape(self: Any, layer_id: int, shape: Any) -> Any:
        """With the layer's own heads."""
        found = list(self.stock.make_key_value_cache_shape(self, layer_id, shape))
        found[1] = self.decoder.layers[layer_id].self_attn.key_value_heads
        return found

    def make_model(self: Any, _input_path: str) -> None:
        """All nodes and weights; they are converted when they are saved."""
        if self.decoder.embedding_scale != 1.0:  # Gemma's, which the builder rounds to two digits
            self.embed_attrs["scale"] = self.decoder.embedding_scale
        self.make_inputs_and_outputs()
        self.weights = self.decoder
        self.make_preprocessing_nodes()
        self.make_embedding(self.decoder.embed_tokens.weight)
        for number, layer in enumerate(track(self.decoder.layers, "writing layers", type(self).progress)):
            self.make_layer(number, layer)
        self.layernorm_attrs["last_layernorm"] = True
        norm, simple = self.decoder.norm, self.layernorm_attrs["simple"]
        self.make_layernorm(len(self.decoder.layers), norm, skip=True, simple=simple, location="final_norm")
        self.make_lm_head(self.decoder.lm_head)
        self.make_postprocessing_nodes()

    def make_layer(self: Any, layer_id: int, layer: DecoderLayer) -> None:
        """A layer, or the half of it that there is."""
        if layer.self_attn is not None:
            self.num_attn_heads, self.num_kv_heads = layer.self_attn.heads, layer.self_attn.key_value_heads
            self.q_size, self.kv_size = (n * self.head_size for n in (self.num_attn_heads, self.num_kv_heads))
        if layer.mlp is not None:
            self.intermediate_size = layer.mlp.width
        if layer.self_attn is not None and layer.mlp is not None:
            self.stock.make_layer(self, layer_id, layer)
        elif layer.mlp is not None:
            self._make_half(layer_id, layer.post_attention_layernorm, "post_attention", layer.mlp)
        elif layer.self_attn is not None:
            self._make_half(layer_id, layer.input_layernorm, "input", layer.self_attn)

    def _make_half(self: Any, layer_id: int, norm: Any, location: str, part: Any) -> None:
        attributes = self.layernorm_attrs
        skip = not attributes["first_layernorm"]
        self.make_layernorm(layer_id, norm, skip=skip, simple=attributes["simple"], location=location)
        make = self.make_mlp if location == "post_attention" else self.make_attention
        make(layer_id, part, root_input=attributes["output_0"])
        if hasattr(self, "residual_scale"):
            self._scale_update(layer_id)
        attributes["first_layernorm"] = False

    def _scale_update(self: Any, layer_id: int) -> None:
        """Granite's multiplier between a half and the residual add."""
        name = f"/model/layers.{layer_id}/residual_mul/Mul_2"
        scale = f"/model/constants/{self.to_str_dtype(self.io_dtype)}/{self.residual_scale}"
        inputs = [self.layernorm_attrs["skip_input"], scale]
        self.make_mul(name, inputs, dtype=self.io_dtype, shape=self.make_hidden_state_shape())
        self.layernorm_attrs["skip_input"] = f"{name}/output_0"

    def update_genai_config(self: Any, genai_config: dict[str, Any]) -> None:
        """As many layers as caches; windows by the numbers of caches."""
        self.stock.update_genai_config(self, genai_config)
        genai_config |= follow(genai_config, self.filename, self.decoder.caches, renumbered=True)
