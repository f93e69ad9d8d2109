"""The decoders whose checkpoints are understood: what a layer's tensors are called, how its norm is written.

    x = x + m self_attn(input_layernorm(x))
    x = x + m mlp(post_attention_layernorm(x))            m: the residual multiplier, 1 in most families

A family is one entry of the table. What is not in it is refused by name: a block that looks like this one and
is not (a second norm behind the FFN, experts) would be fused wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fxfuse.errors import InputError

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True)
class Family:
    """Names are relative to a layer, as in "model.layers.7"; weights end in ".weight", biases in ".bias".

    `gate` and `up` are None where `packed` holds both, gate's rows first. `gain_offset` is what the norm adds
    to its weight to get its gain (1 in Gemma). `llama`: why the family is no Llama with other names or sizes,
    for formats which hold nothing else; None where it is one.
    """

    model_type: str
    architecture: str
    layers: str = "model.layers"
    attention: str = "self_attn"
    attention_norm: str = "input_layernorm"
    norm: str = "post_attention_layernorm"
    gate: str | None = "mlp.gate_proj"
    up: str | None = "mlp.up_proj"
    packed: str | None = None
    down: str = "mlp.down_proj"
    gain_offset: float = 0.0
    llama: str | None = None

    @property
    def ffn_weights(self) -> tuple[str, ...]:
        """The products of an FFN, the last of them down."""
        first = (self.packed,) if self.packed else (self.gate, self.up)
        return tuple(name for name in (*first, self.down) if name)


_BIAS = "its attention has biases on q, k and v but none on o"
_HEADS = "its attention normalises queries and keys"

FAMILIES: Mapping[str, Family] = {
    each.model_type: each
    for each in (
        Family("llama", "LlamaForCausalLM"),
        Family("mistral", "MistralForCausalLM"),
        Family("qwen2", "Qwen2ForCausalLM", llama=_BIAS),
        Family("qwen3", "Qwen3ForCausalLM", llama=_HEADS),
        Family("phi3", "Phi3ForCausalLM", gate=None, up=None, packed="mlp.gate_up_proj"),
        Family(
            "gemma", "GemmaForCausalLM", gain_offset=1.0,
            llama="its embeddings are scaled and its activation is gelu_pytorch_tanh",
        ),
        Family("granite", "GraniteForCausalLM"),
        Family("nemotron-nas", "DeciLMForCausalLM"),
    )
}  # fmt: skip

_REFUSED = {
    "gemma2": "a norm stands between the FFN and the residual add (sandwich form)",
    "gemma3_text": "a norm stands between the FFN and the residual add (sandwich form)",
    "olmo2": "its norm stands behind the FFN, so that the blocks have no norm to share",
    "mixtral": "its FFNs are experts behind a router",
    "qwen2_moe": "its FFNs are experts behind a router",
    "qwen3_moe": "its FFNs are experts behind a router",
    "cohere": "attention and FFN stand in parallel in a layer",
    "phi": "attention and FFN stand in parallel in a layer",
}


def family_of(config: Mapping[str, Any], place: str) -> Family:
    """The family of a config.json that stands at `place`.

    Raises:
        InputError: It names no model type, or one that is not known or cannot be fused.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise InputError(f"{place} names no model_type: give the folder of a Hugging Face checkpoint.")
    if kind in FAMILIES:
        return FAMILIES[kind]
    if kind in _REFUSED:
        raise InputError(f"A checkpoint of {kind} cannot be fused: {_REFUSED[kind]}.")
    known = ", ".join(FAMILIES)
    raise InputError(
        f"Checkpoints of {kind} are not known ({place}); known are {known}: export the model to ONNX or pass "
        "it to fxfuse.fuse, where FFNs are recognised by what they compute."
    )
