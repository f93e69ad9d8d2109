"""The families, each with the chains that are there, told by hand."""

from typing import Any

from torch import Tensor

from tests.families.records import HIDDEN, INTERMEDIATE, Family, branch_first, clamped


def _dropped(layer: Any, x: Tensor) -> Tensor:
    return layer.resid_mlp_dropout(layer.mlp(layer.post_attention_layernorm(x)))


def _dropped_after(layer: Any, x: Tensor) -> Tensor:
    return layer.post_mlp_dropout(layer.mlp(layer.post_attention_layernorm(x)))


def _scaled(layer: Any, x: Tensor) -> Tensor:
    return layer.mlp(layer.post_attention_layernorm(x)) * layer.residual_multiplier


def _sandwich(layer: Any, x: Tensor) -> Tensor:
    return layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x)))


def _gpt2(layer: Any, x: Tensor) -> Tensor:
    return layer.mlp(layer.ln_2(x))


def _phi(layer: Any, x: Tensor) -> Tensor:
    return layer.resid_dropout(layer.mlp(layer.input_layernorm(x)))


def _stablelm(layer: Any, x: Tensor) -> Tensor:
    return layer.dropout(layer.mlp(layer.post_attention_layernorm(x)))


def _t5(layer: Any, x: Tensor) -> Tensor:
    ff = layer.layer[-1]
    return ff.dropout(ff.DenseReluDense(ff.layer_norm(x)))


def _vit(layer: Any, x: Tensor) -> Tensor:
    return layer.dropout(layer.mlp(layer.layernorm_after(x)))


def _siglip(layer: Any, x: Tensor) -> Tensor:
    return layer.mlp(layer.layer_norm2(x))


def _bert(layer: Any, x: Tensor) -> Tensor:
    return layer.output.dropout(layer.output.dense(layer.intermediate(x)))


def _normed(layer: Any, x: Tensor, branch: Tensor) -> Tensor:
    return layer.output.LayerNorm(branch + x)


_GEMMA = {"offset_gain": True, "embedding_std": HIDDEN**-0.5}
_NEOX: dict[str, Any] = {
    "branch": _dropped_after, "join": branch_first, "attention": "attention", "grouped_heads": False,
}  # fmt: skip
_BESIDE = "in a layer that keeps its attention the FFN stands beside it, so no chain starts there"
_T5: dict[str, Any] = {
    "branch": _t5, "join": clamped, "attention": "layer.0", "ffn": "layer.1.DenseReluDense",
    "head": "EncoderModel", "grouped_heads": False, "implementation": "eager",
}  # fmt: skip
_VISION: dict[str, Any] = {"head": "Model", "pixels": True, "grouped_heads": False}
_WIDE_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
"""Half of each head is rotated, and ONNX Runtime wants that to be a whole number of eights."""
_IMAGE = {"image_size": 32, "patch_size": 8}

FAMILIES: dict[str, Family] = {
    "llama": Family("Llama"),
    "mistral": Family("Mistral"),
    "qwen2": Family("Qwen2"),
    "qwen3": Family("Qwen3", {"head_dim": 16}),
    "gemma": Family("Gemma", {"head_dim": 16}, **_GEMMA),
    "phi3": Family("Phi3", branch=_dropped),
    "gpt_neox": Family("GPTNeoX", {"use_parallel_residual": False}, **_NEOX),
    "granite": Family("Granite", {"residual_multiplier": 0.5}, branch=_scaled),
    "nemotron": Family("Nemotron", _WIDE_HEADS, offset_gain=True),
    "olmo": Family("Olmo"),
    "stablelm": Family("StableLm", branch=_stablelm),
    "starcoder2": Family("Starcoder2"),
    "gpt2": Family(
        "GPT2", {"n_inner": INTERMEDIATE}, branch=_gpt2, attention="attn", head="LMHeadModel",
        grouped_heads=False,
    ),
    "qwen3_moe": Family(
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "mlp_only_layers": [0, 1, 2]},
        chains=(3,),
        why="layers 3 and 4 hold experts",
        blocks=3,
    ),
    "deepseek_v3": Family(
        "DeepseekV3",
        {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
         "qk_nope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
         "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "moe_intermediate_size": 32,
         "first_k_dense_replace": 3},
        chains=(3,),
        why="layers 3 and 4 hold experts",
        blocks=3,
    ),
    "phi": Family("Phi", _WIDE_HEADS, chains=(2,), why=_BESIDE, blocks=0, branch=_phi, parallel=True),
    "gpt_neox_parallel": Family("GPTNeoX", chains=(2,), why=_BESIDE, blocks=0, parallel=True, **_NEOX),
    "t5": Family("T5", {"d_ff": INTERMEDIATE, "d_kv": 16, "feed_forward_proj": "relu"}, **_T5),
    "t5_gated": Family(
        "T5", {"d_ff": INTERMEDIATE, "d_kv": 16, "feed_forward_proj": "gated-gelu"}, **_T5
    ),
    "vit": Family("ViT", _IMAGE, branch=_vit, join=branch_first, attention="attention", **_VISION),
    "siglip": Family("SiglipVision", {**_IMAGE, "vision_use_head": False}, branch=_siglip, **_VISION),
    "gemma2": Family(
        "Gemma2", {"head_dim": 16}, (), "a norm stands after each FFN", 0, _sandwich, implementation="eager",
        **_GEMMA,
    ),
    "mixtral": Family(
        "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, (), "every layer holds experts", 0
    ),
    "bert": Family(
        "Bert", chains=(), why="the norm stands after the residual add", blocks=0, branch=_bert, join=_normed,
        attention="attention", ffn="intermediate", head="Model", grouped_heads=False,
    ),
}  # fmt: skip
