"""Small decoders of real families with random weights, whose layers differ, and what torch generates.

    layer    0            1      2            3           4
             attention    -      attention    -           attention
             ffn          ffn    ffn          wide ffn    ffn

The wide one is as if several had been fused. Gains and biases are drawn too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from fxfuse.removal.layers import take_out

WIDTH, WIDE, WORDS = 96, 256, 97
NAMES = {
    "gemma": "Gemma", "granite": "Granite", "llama": "Llama", "mistral": "Mistral", "phi3": "Phi3",
    "qwen2": "Qwen2", "qwen3": "Qwen3",
}  # fmt: skip
OWN: Mapping[str, Mapping[str, Any]] = {
    "gemma": {"head_dim": 16},
    "granite": {"residual_multiplier": 0.6, "embedding_multiplier": 2.0, "logits_scaling": 1.5},
    "phi3": {"original_max_position_embeddings": 128},
    "qwen3": {"head_dim": 16},
}


def decoder(
    family: str = "llama",
    *,
    without: Collection[int] = (1, 3),
    without_ffn: Collection[int] = (),
    widths: Mapping[int, int] = {3: WIDE},
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Any:
    """A model in eval mode; `widths` are of layers whose FFN has another width than WIDTH."""
    values = {
        "hidden_size": 64, "intermediate_size": WIDTH, "vocab_size": WORDS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 5, "max_position_embeddings": 128,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **OWN.get(family, {}), **config,
    }  # fmt: skip
    name = NAMES[family]
    made = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**values))
    for layer, width in widths.items():
        _widen(made, layer, width)
    _draw(made)
    for layer in without:
        take_out(made.model.layers[layer], "self_attn", f"model.layers.{layer}.self_attn")
    for layer in without_ffn:
        _leave_attention(made.model.layers[layer])
    return made.to(dtype).eval().requires_grad_(False)


def _widen(model: Any, layer: int, width: int) -> None:
    config = model.config
    own = type(config).from_dict({**config.to_dict(), "intermediate_size": width})
    block = model.model.layers[layer]
    block.mlp = type(block.mlp)(own)


def _leave_attention(layer: Any) -> None:
    """Or nothing, where that is gone too."""

    def forward(self: Any, hidden_states: torch.Tensor, **given: Any) -> torch.Tensor:
        if self.self_attn is None:
            return hidden_states
        update, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **given)
        return hidden_states + update * getattr(self, "residual_multiplier", 1.0)

    layer.mlp = layer.post_attention_layernorm = None
    layer.__class__ = type("AttentionLayer", (type(layer),), {"forward": forward})


def _draw(model: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    for name, each in model.named_parameters():
        noise = torch.randn(each.shape, generator=generator)
        if "norm" in name:
            each.data = each.data + 0.3 * noise
        elif each.ndim == 1:
            each.data = 0.1 * noise
        else:
            each.data = noise * (0.1 if "embed" in name else each.shape[-1] ** -0.5)
    model.lm_head.weight.data[2] = 0  # the token that ends a text is never the most likely one


def greedy(model: Any, prompt: list[int], length: int) -> list[int]:
    """What torch generates, by the most likely token of a pass over everything, up to `length` tokens."""
    tokens = list(prompt)
    while len(tokens) < length:
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens


def generated(folder: Path, prompt: list[int], length: int) -> list[int]:
    """What onnxruntime-genai generates from the folder, with its defaults."""
    import numpy as np
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    options = og.GeneratorParams(model)
    options.set_search_options(max_length=length)
    generator = og.Generator(model, options)
    generator.append_tokens(np.array([prompt], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(each) for each in generator.get_sequence(0)]
