"""What onnxruntime-genai's model builder writes, of a model in memory whose layers may have lost attention.

The builder goes from layer to layer: `make_layer` writes norm, attention, norm and FFN. Where a layer has no
attention, the first two are left out and the residual add goes into the next layer's Skip norm, as always.
"""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from tests.exporters import silenced
from tests.families import FAMILIES, HIDDEN, build, has_attention
from tests.forms.record import NotMade

_CLASSES = {
    "llama": "LlamaModel",
    "mistral": "MistralModel",
    "qwen2": "QwenModel",
    "qwen3": "Qwen3Model",
    "gemma": "GemmaModel",
    "phi3": "Phi3MiniModel",
    "granite": "GraniteModel",
    "nemotron": "NemotronModel",
    "olmo": "OLMoModel",
    "phi": "PhiModel",
}
"""The builder's classes, as its create_model chooses them by architecture."""

_TYPES = {"fp32": ("FLOAT", "FLOAT"), "fp16": ("FLOAT16", "FLOAT16"), "int4": ("FLOAT", "INT4")}
"""Of the inputs and outputs, and of the weights. int4 quantises a float model in blocks of 32."""


def write_genai(family: str, path: Path, precision: str, **built: Any) -> Path:
    """Write the builder's model of `family` as one file; precision "fp32", "fp16" or "int4".

    Raises:
        NotMade: the builder is not installed, or does not know the family.
    """
    model = build(family, **built)
    maker = _maker(family)
    config = copy.deepcopy(model.config)
    config.architectures = [f"{FAMILIES[family].name}ForCausalLM"]
    folder = path.parent / f"{path.stem}.genai"
    folder.mkdir()
    with silenced(), torch.no_grad():
        import onnx_ir

        kinds = [getattr(onnx_ir.DataType, each) for each in _TYPES[precision]]
        options = {"filename": "model.onnx"}
        writer = maker(config, *kinds, "cpu", str(folder), options)
        writer.given = copy.deepcopy(model)
        writer.make_model("")
        writer.save_model(str(folder))
    written = onnx.load(folder / "model.onnx")
    _drop_unused_caches(written.graph)
    onnx.save(written, path)
    return path


def _drop_unused_caches(graph: onnx.GraphProto) -> None:
    """The builder names a cache for every layer; those without attention neither read nor write theirs."""
    read = {name for node in graph.node for name in node.input}
    made = {name for node in graph.node for name in node.output}
    for values, used in ((graph.input, read), (graph.output, made)):
        for value in [each for each in values if each.name not in used]:
            values.remove(value)


def feeds(session: Any, family: str, ids: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """The builder's inputs for a prompt: its ids [B, S], a mask of ones, positions, and an empty cache."""
    head_size = HIDDEN // FAMILIES[family].config.get("num_attention_heads", 4)
    batch, length = ids.shape
    positions = np.broadcast_to(np.arange(length, dtype=np.int64), (batch, length))
    known = {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids.numpy()), "position_ids": positions}
    found = {}
    for each in session.get_inputs():
        kind = np.float16 if each.type == "tensor(float16)" else np.float32
        empty = np.zeros((batch, each.shape[1], 0, head_size), kind) if each.name.startswith("past") else None
        found[each.name] = known[each.name] if empty is None else empty
    return found


def _maker(family: str) -> Any:
    if family == "gemma2":
        raise NotMade("ONNX Runtime refuses the builder's float16 file, and runs none with an empty cache")
    if family not in _CLASSES:
        raise NotMade("onnxruntime-genai's builder does not know the architecture")
    try:
        builders = importlib.import_module("onnxruntime_genai.models.builder")
    except ImportError as error:
        raise NotMade("onnxruntime-genai is not installed (it has no wheel for this Python)") from error
    stock = getattr(builders, _CLASSES[family])

    class Writer(stock):  # type: ignore[misc, valid-type]
        given: nn.Module

        def load_weights(self, _path: str) -> nn.Module:
            return self.given

        def has_lm_head(self, module: nn.Module) -> bool:
            # Its own takes every product for the head that is as wide as the vocabulary.
            return module is self.given.lm_head

        def make_layer(self, layer_id: int, layer: Any) -> None:
            if has_attention(layer):
                super().make_layer(layer_id, layer)
            else:
                _make_ffn(self, layer_id, layer)

    return Writer


def _make_ffn(writer: Any, layer_id: int, layer: Any) -> None:
    attributes = writer.layernorm_attrs
    norm = getattr(layer, "post_attention_layernorm", None) or layer.input_layernorm
    simple = attributes["simple"]
    writer.make_layernorm(layer_id, norm, skip=True, simple=simple, location="post_attention")
    writer.make_mlp(layer_id, layer.mlp, root_input=attributes["output_0"])
    if hasattr(writer, "residual_scale"):
        name = f"/model/layers.{layer_id}/residual_mul/Mul_2"
        scale = f"/model/constants/{writer.to_str_dtype(writer.io_dtype)}/{writer.residual_scale}"
        shape = writer.make_hidden_state_shape()
        writer.make_mul(name, [attributes["skip_input"], scale], dtype=writer.io_dtype, shape=shape)
        attributes["skip_input"] = f"{name}/output_0"
    attributes["last_layernorm"] = layer_id == writer.num_layers - 1
