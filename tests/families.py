"""Small decoders of real model families, with random weights and attention removed from some layers.

    x = x + attention(norm(x));  x = x + ffn(norm(x))      a layer as its family writes it
                                 x = x + ffn(norm(x))      a layer whose attention is removed

The modules, their names and their FFN code are those of transformers; only the layer's forward changes, so
every tracer sees the residual stream run straight from one FFN to the next.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

HIDDEN, INTERMEDIATE, VOCAB = 64, 112, 128
REMOVED = (1, 2, 4)

_ONTO_STREAM = ("o_proj", "down_proj", "attention.dense", "dense_4h_to_h")
"""Halved, so that a layer's update stays smaller than the stream without being negligible."""

_SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "vocab_size": VOCAB,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 0,
}

Branch = Callable[[Any, Tensor], Tensor]


def _plain(layer: Any, x: Tensor) -> Tensor:
    return x + layer.mlp(layer.post_attention_layernorm(x))


def _branch_dropped(layer: Any, x: Tensor) -> Tensor:
    return x + layer.resid_mlp_dropout(layer.mlp(layer.post_attention_layernorm(x)))


def _branch_dropped_first(layer: Any, x: Tensor) -> Tensor:
    return layer.post_mlp_dropout(layer.mlp(layer.post_attention_layernorm(x))) + x


def _branch_scaled(layer: Any, x: Tensor) -> Tensor:
    return x + layer.mlp(layer.post_attention_layernorm(x)) * layer.residual_multiplier


def _sandwich(layer: Any, x: Tensor) -> Tensor:
    return x + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x)))


@dataclass(frozen=True)
class Family:
    """How to build one family, and which chains of two blocks or more are left when REMOVED goes."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    chains: tuple[int, ...] = (3, 2)
    bypassed: Branch = _plain
    grouped_heads: bool = True
    offset_gain: bool = False
    embedding_std: float = 1.0
    attention: str = "sdpa"


_GEMMA = {"offset_gain": True, "embedding_std": HIDDEN**-0.5}

FAMILIES: dict[str, Family] = {
    "llama": Family("Llama"),
    "mistral": Family("Mistral"),
    "qwen2": Family("Qwen2"),
    "qwen3": Family("Qwen3", {"head_dim": 16}),
    "gemma": Family("Gemma", {"head_dim": 16}, **_GEMMA),
    "phi3": Family("Phi3", bypassed=_branch_dropped),
    "gpt_neox": Family(
        "GPTNeoX", {"use_parallel_residual": False}, bypassed=_branch_dropped_first, grouped_heads=False
    ),
    "granite": Family("Granite", {"residual_multiplier": 0.5}, bypassed=_branch_scaled),
    "gpt_neox_parallel": Family("GPTNeoX", chains=(2,), bypassed=_branch_dropped_first, grouped_heads=False),
    "gemma2": Family("Gemma2", {"head_dim": 16}, (), _sandwich, attention="eager", **_GEMMA),
    "mixtral": Family("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, chains=()),
}
FUSED = [name for name, family in FAMILIES.items() if family.chains == (3, 2)]
REFUSED = [name for name, family in FAMILIES.items() if not family.chains]


def build(
    family: str,
    removed: Collection[int] = REMOVED,
    layers: int = 5,
    dtype: torch.dtype = torch.float32,
    *,
    hidden_states: bool = False,
    **config_overrides: Any,
) -> nn.Module:
    """Return an eval-mode decoder whose forward(input_ids [B, S]) is its logits [B, S, VOCAB] alone.

    With `hidden_states` it is (logits, stream after layer 0, after layer 1, ...): every block is tapped.
    """
    model = _causal(FAMILIES[family], layers, config_overrides)
    _randomise(model, FAMILIES[family])
    for index in removed:
        _remove_attention(decoder_layers(model)[index], FAMILIES[family].bypassed)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    _return_logits(model, taps=hidden_states)
    return model.eval().requires_grad_(False)


def ids(batch: int = 2, length: int = 7, seed: int = 0) -> Tensor:
    """Return example input_ids, int64 [batch, length]."""
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the layers of a model that `build` made."""
    return model.base_model.layers  # type: ignore[return-value, union-attr]


def has_attention(layer: nn.Module) -> bool:
    """Tell whether `build` left the layer its attention."""
    return not getattr(layer, "attention_removed", False)


def _causal(family: Family, layers: int, overrides: dict[str, Any]) -> Any:
    heads = {"num_key_value_heads": 2} if family.grouped_heads else {}
    settings = _SIZES | heads | {"num_hidden_layers": layers} | family.config | overrides
    config = getattr(transformers, f"{family.name}Config")(**settings)
    # Both are what the ONNX exporters can read: no vmap in the mask, no loop over the experts that were hit.
    config._attn_implementation = family.attention
    config._experts_implementation = "batched_mm"
    return getattr(transformers, f"{family.name}ForCausalLM")(config)


def _randomise(model: nn.Module, family: Family) -> None:
    generator = torch.Generator().manual_seed(1234)
    centre = 0.0 if family.offset_gain else 1.0
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data = centre + 0.3 * noise
        elif parameter.ndim == 1:
            parameter.data = 0.1 * noise
        elif "embed" in name and "embed_out" not in name:
            parameter.data = family.embedding_std * noise
        else:
            onto_stream = any(part in name for part in _ONTO_STREAM)
            parameter.data = noise * parameter.shape[-1] ** -0.5 * (0.5 if onto_stream else 1.0)


def _remove_attention(layer: Any, branch: Branch) -> None:
    def forward(self: Any, hidden_states: Tensor, **_: Any) -> Tensor:
        return branch(self, hidden_states)

    layer.attention_removed = True
    layer.__class__ = _namesake(type(layer), forward)


def _return_logits(model: Any, taps: bool) -> None:
    old = type(model)

    def forward(self: Any, input_ids: Tensor) -> Tensor | tuple[Tensor, ...]:
        logits: Tensor = old.forward(self, **_inputs(self, input_ids), use_cache=False).logits
        return (logits, *_take_taps(self)) if taps else logits

    model.__class__ = _namesake(old, forward)
    for layer in decoder_layers(model) if taps else ():
        layer.register_forward_hook(_tap)


def _namesake(old: type, forward: Callable[..., Any]) -> type:
    """Make a class of the same name; a method set on the instance would show in dynamo's module paths."""
    return type(old.__name__, (old,), {"forward": forward, "__module__": old.__module__})


def _tap(layer: Any, _args: Any, output: Tensor) -> None:
    layer.tap = output


def _take_taps(model: Any) -> list[Tensor]:
    taps = [layer.tap for layer in decoder_layers(model)]
    for layer in decoder_layers(model):
        layer.tap = None  # torch.export refuses tensors that stay on a module
    return taps


def _inputs(model: Any, input_ids: Tensor) -> dict[str, Any]:
    """Give positions [B, S] and an additive causal mask [1, 1, S, S], which every exporter can trace."""
    length, dtype = input_ids.shape[1], model.get_input_embeddings().weight.dtype
    positions = torch.arange(length, device=input_ids.device).expand(input_ids.shape)
    mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=input_ids.device)
    mask = torch.triu(mask, diagonal=1)[None, None]
    kinds = set(getattr(model.config, "layer_types", None) or ())
    by_kind = model.config.model_type in ("qwen2", "qwen3", "gemma2")
    masks = dict.fromkeys(kinds, mask) if by_kind else mask
    return {"input_ids": input_ids, "position_ids": positions, "attention_mask": masks}
