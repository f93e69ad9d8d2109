"""What the readers of nemotron-nas insist on, rule by rule, each with the readers that have it.

Taken from their code:

    mlx-lm        mlx_lm/models/nemotron-nas.py, mlx_lm/utils.py (load_model)
    vLLM          vllm/model_executor/models/nemotron_nas.py, llama.py; vllm/transformers_utils/config.py
    llama.cpp     conversion of DeciLMForCausalLM (convert_hf_to_gguf), src/models/deci.cpp
    TensorRT-LLM  tensorrt_llm/_torch/models/modeling_nemotron_nas.py

A rule yields what is wrong, as the end of a sentence that begins with the reader's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fxfuse.checkpoints.dialects.blocks import MULTIPLE
from fxfuse.checkpoints.dialects.nemotron_nas import ROPES
from fxfuse.checkpoints.file_rules import beside_config, code_in_folder, files_by_name, leftovers, tokenizer
from fxfuse.checkpoints.reader_names import LLAMA_CPP, MLX, TRT, VLLM
from fxfuse.checkpoints.seen import Rule, Seen
from fxfuse.checkpoints.settings import count_of, setting

__all__ = ["RULES"]

_ALL = (MLX, VLLM, LLAMA_CPP, TRT)
_NEEDED = {
    "attention": ("no_op", "n_heads_in_group", "replace_with_linear"),
    "ffn": ("no_op", "ffn_mult", "replace_with_linear"),
}
_KNOWN = {
    "attention": (
        *_NEEDED["attention"], "sparsify", "window_length", "num_sink_tokens",
        "use_prefill_window_in_sink_attention", "unshifted_sink",
    ),
    "ffn": (*_NEEDED["ffn"], "sparsify"),
}  # fmt: skip
_LLAMA_3_CONTEXT = 8192
"""Tokens of Llama 3 before it was stretched, which llama.cpp takes where nothing else is said."""


def _first_attention(seen: Seen) -> Iterator[str]:
    if not seen.checkpoint.layers[0].attention:
        yield "layer 0 has no attention"


def _any_attention(seen: Seen) -> Iterator[str]:
    if not any(layer.attention for layer in seen.checkpoint.layers):
        yield "no layer has attention"


def _attention_alone(seen: Seen) -> Iterator[str]:
    for layer in seen.checkpoint.layers:
        if layer.attention and not layer.ffn:
            yield f"layer {layer.number} is attention alone, which is left out"


def _rounded_widths(seen: Seen) -> Iterator[str]:
    """ffn_mult is a float whose 6 decimals give back the width."""
    return _widths(seen, lambda ffn_mult: round(ffn_mult, 6))


def _exact_widths(seen: Seen) -> Iterator[str]:
    """ffn_mult is a float that gives back the width."""
    return _widths(seen, lambda ffn_mult: ffn_mult)


def _widths(seen: Seen, taken: Callable[[float], float]) -> Iterator[str]:
    hidden = seen.checkpoint.hidden_size
    for layer, entry in zip(seen.checkpoint.layers, seen.entries, strict=True):
        ffn_mult, width = entry.get("ffn", {}).get("ffn_mult"), _stored_width(seen, layer.number)
        if not layer.ffn or width is None:
            continue
        if width % MULTIPLE:
            yield f"the FFN of layer {layer.number} is {width} wide, and not a multiple of {MULTIPLE}"
        elif not isinstance(ffn_mult, float):
            yield f"the ffn_mult of layer {layer.number} is {ffn_mult!r}, and not a float"
        else:
            channels = int(2 * taken(ffn_mult) * hidden / 3)
            made = channels + -channels % MULTIPLE
            if made != width:
                yield f"the ffn_mult {ffn_mult} of layer {layer.number} makes {made} of its {width} channels"


def _stored_width(seen: Seen, number: int) -> int | None:
    """Rows of gate as they lie in the file; None where they do not, which is told elsewhere."""
    family = seen.checkpoint.family
    found = seen.checkpoint.tensors.get(f"{seen.checkpoint.prefix(number)}.{family.gate}.weight")
    return found.shape[0] if found is not None and found.shape else None


def _needed_keys(seen: Seen) -> Iterator[str]:
    for number, entry in enumerate(seen.entries):
        for part, names in _NEEDED.items():
            missing = next((name for name in names if name not in entry.get(part, {})), None)
            if missing is not None:
                yield f"the {part} of layer {number} has no {missing} in its block_config"
                return


def _known_keys(seen: Seen) -> Iterator[str]:
    for number, entry in enumerate(seen.entries):
        for part, names in _KNOWN.items():
            other = next((name for name in entry.get(part, {}) if name not in names), None)
            if other is not None:
                yield f"the {part} of layer {number} has {other!r} in its block_config"
                return


def _head_size(seen: Seen) -> Iterator[str]:
    heads, size = count_of(seen.config, "num_attention_heads"), int(setting(seen.config, "head_dim"))
    if heads * size != seen.checkpoint.hidden_size:
        yield f"a head has {size} channels, and not {seen.checkpoint.hidden_size} / {heads}"


def _silu(seen: Seen) -> Iterator[str]:
    if (act := setting(seen.config, "hidden_act")) != "silu":
        yield f"its activation is {act}, and not silu"


def _no_biases(seen: Seen) -> Iterator[str]:
    for name in ("attention_bias", "mlp_bias"):
        if setting(seen.config, name):
            yield f"its products have biases ({name})"


def _top_level_rope(seen: Seen) -> Iterator[str]:
    if "rope_theta" not in seen.config:
        yield "rope_theta is not at the top level of config.json"


def _scaled_rope(seen: Seen) -> Iterator[str]:
    """mlx-lm wants a factor and a kind, and knows these."""
    scaling = seen.config.get("rope_scaling") or {}
    if scaling and not ("factor" in scaling and "rope_type" in scaling):
        yield "rope_scaling has no factor or no rope_type"
    elif scaling and scaling["rope_type"] not in (*ROPES, "longrope"):
        yield f"rotary embeddings of {scaling['rope_type']} are not known"


def _llama_rope(seen: Seen) -> Iterator[str]:
    kind = seen.rope["rope_type"]
    if kind not in ("default", "llama3"):
        yield f"rotary embeddings of {kind} are taken for plain ones"
    context = seen.rope.get("original_max_position_embeddings", _LLAMA_3_CONTEXT)
    known = seen.config.get("original_max_position_embeddings", _LLAMA_3_CONTEXT)
    if kind == "llama3" and context != known:
        yield f"original_max_position_embeddings is {known} at the top level, and {context} in rope_scaling"


def _named_dtype(seen: Seen) -> Iterator[str]:
    if not (seen.config.get("torch_dtype") or seen.config.get("dtype")):
        yield "config.json has no torch_dtype"


def _named_architecture(seen: Seen) -> Iterator[str]:
    if seen.config.get("architectures") != ["DeciLMForCausalLM"]:
        yield f"architectures is {seen.config.get('architectures')!r}, and not ['DeciLMForCausalLM']"


RULES: tuple[tuple[Rule, tuple[str, ...]], ...] = (
    (_named_architecture, (VLLM, LLAMA_CPP, TRT)),
    (code_in_folder, (VLLM, TRT)),
    (_named_dtype, (TRT,)),
    (_needed_keys, (VLLM, LLAMA_CPP, TRT)),
    (_known_keys, (MLX,)),
    (_first_attention, (VLLM, LLAMA_CPP)),
    (_any_attention, (MLX, TRT)),
    (_attention_alone, (LLAMA_CPP,)),
    (_rounded_widths, (MLX,)),
    (_exact_widths, (VLLM, LLAMA_CPP, TRT)),
    (_head_size, (MLX, LLAMA_CPP, TRT)),
    (_silu, _ALL),
    (_no_biases, (TRT,)),
    (_top_level_rope, (MLX,)),
    (_scaled_rope, (MLX,)),
    (_llama_rope, (LLAMA_CPP,)),
    (leftovers, _ALL),
    (files_by_name, (MLX, LLAMA_CPP)),
    (beside_config, (VLLM, TRT)),
    (tokenizer, (LLAMA_CPP,)),
)
"""Every rule with the readers that have it."""
