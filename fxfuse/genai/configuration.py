"""The configuration as the builder of ONNX Runtime GenAI reads it: one value where the layers differ.

The builder takes the layers' widths from it, their windows, and the folder that tokens' numbers and defaults
of generating are read from. What differs from layer to layer is told to it again at each (see `writer`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fxfuse.checkpoints.families import family_of
from fxfuse.genai.decoder import Decoder

__all__ = ["builder_config", "carry_files"]

_TOKENIZER = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "merges.txt", "sentencepiece.bpe.model",
    "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
)  # fmt: skip


def builder_config(decoder: Decoder, folder: Path) -> Any:
    """A copy for the builder, which writes into it.

    Args:
        decoder: What it is of.
        folder: Where tokenizer and generation_config.json are.
    """
    from transformers import CONFIG_MAPPING

    config = decoder.config
    values = config.to_dict()
    for name in ("per_layer_config", "quantization_config", "dtype", "torch_dtype", "transformers_version"):
        values.pop(name, None)
    windows = [layer.self_attn.window if layer.self_attn else None for layer in decoder.layers]
    attentions = [layer.self_attn for layer in decoder.layers if layer.self_attn]
    values |= {
        "num_hidden_layers": len(decoder.layers),
        "intermediate_size": max((each.mlp.width for each in decoder.layers if each.mlp), default=1),
        "num_key_value_heads": max(each.key_value_heads for each in attentions),
        "architectures": [family_of(values, "The model's config").architecture],
    }
    values.pop("layer_types", None)
    made = CONFIG_MAPPING[config.model_type].from_dict(values)
    # Set and not handed in: some families would take the windows of their own defaults instead.
    made.layer_types = ["sliding_attention" if each else "full_attention" for each in windows]
    made.sliding_window = next((each for each in windows if each), None)
    made.rope_parameters = {"type": made.rope_parameters["rope_type"], **made.rope_parameters}
    made._name_or_path = str(folder)
    return made


def carry_files(model: Any, tokenizer: Any, folder: Path) -> bool:
    """Put into `folder` what the builder reads beside weights; returns whether there is a tokenizer.

    Args:
        model: A model of transformers, whose generation_config is taken.
        tokenizer: One of transformers, the folder of one, or None.
        folder: An empty folder.
    """
    generation = getattr(model, "generation_config", None)
    if generation is not None:  # not save_pretrained, which refuses what many models are published with
        generation.to_json_file(folder / "generation_config.json")
    if tokenizer is None:
        return False
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
        return True
    names = [name for name in _TOKENIZER if (Path(tokenizer) / name).is_file()]
    for name in names:
        shutil.copyfile(Path(tokenizer) / name, folder / name)
    return any(name.startswith(("tokenizer.", "vocab.", "sentencepiece")) for name in names)
