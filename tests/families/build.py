"""Build a family's model from its record: modules of transformers, random weights, attention removed.

The modules, their names and their FFN code are those of transformers; only the layer's forward changes, so
every tracer sees the residual stream run straight from one FFN to the next.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.families.records import HIDDEN, INTERMEDIATE, REMOVED, VOCAB, Family, handed_on
from tests.families.table import FAMILIES

_ONTO_STREAM = (
    "o_proj", "out_proj", "down_proj", "c_proj", "fc2", "wo.", "SelfAttention.o.", "attention.dense",
    "self_attn.dense", "output.dense", "dense_4h_to_h",
)  # fmt: skip
"""Halved, so that a layer's update stays smaller than the stream without being negligible."""

_EMBEDDINGS = ("embed_tokens", "embed_in", "embeddings.", "wte", "wpe", "shared.weight")

_SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "vocab_size": VOCAB,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def build(
    family: str,
    removed: Collection[int] = REMOVED,
    layers: int = 5,
    dtype: torch.dtype = torch.float32,
    *,
    hidden_states: bool = False,
    **config_overrides: Any,
) -> nn.Module:
    """Return an eval-mode model whose forward(input_ids [B, S]) is its logits [B, S, VOCAB] alone.

    An encoder gives hidden states [B, S, HIDDEN]; a vision model takes pixel_values [B, 3, 32, 32]. With
    `hidden_states` it is (output, stream after layer 0, after layer 1, ...): every block is tapped.
    """
    record = FAMILIES[family]
    model = _stock(record, layers, config_overrides)
    _randomise(model, record)
    for index in removed:
        _remove_attention(decoder_layers(model)[index], record)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    _return_output(model, record, taps=hidden_states)
    return model.eval().requires_grad_(False)


def ids(batch: int = 2, length: int = 7, seed: int = 0) -> Tensor:
    """Return example input_ids, int64 [batch, length]."""
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def example(family: str, batch: int = 2, length: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return what the family's model reads: `ids`, or pixels [batch, 3, 32, 32] in `dtype`."""
    if not FAMILIES[family].pixels:
        return ids(batch, length)
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the layers of a model that `build` made."""
    return next(each for each in model.modules() if isinstance(each, nn.ModuleList))


def has_attention(layer: nn.Module) -> bool:
    """Tell whether `build` left the layer its attention."""
    return not getattr(layer, "attention_removed", False)


def _stock(family: Family, layers: int, overrides: dict[str, Any]) -> Any:
    heads = {"num_key_value_heads": 2} if family.grouped_heads else {}
    settings = _SIZES | heads | {"num_hidden_layers": layers} | dict(family.config) | overrides
    config = getattr(transformers, f"{family.name}Config")(**settings)
    # Both are what the ONNX exporters can read: no vmap in the mask, no loop over the experts that were hit.
    config._attn_implementation = family.implementation
    config._experts_implementation = "batched_mm"
    return getattr(transformers, family.name + family.head)(config)


def _randomise(model: nn.Module, family: Family) -> None:
    generator = torch.Generator().manual_seed(1234)
    centre = 0.0 if family.offset_gain else 1.0
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if ("norm" in name.lower() or ".ln_" in name) and name.endswith("weight"):
            parameter.data = centre + 0.3 * noise
        elif parameter.ndim == 1:
            parameter.data = 0.1 * noise
        elif any(part in name for part in _EMBEDDINGS) and parameter.ndim != 4:
            parameter.data = family.embedding_std * noise
        else:
            onto_stream = any(part in name for part in _ONTO_STREAM)
            fan_in = parameter.shape[1:].numel() if parameter.ndim == 4 else parameter.shape[-1]
            parameter.data = noise * fan_in**-0.5 * (0.5 if onto_stream else 1.0)


def _remove_attention(layer: Any, family: Family) -> None:
    def forward(self: Any, hidden_states: Tensor, *args: Any, **_: Any) -> Any:
        stream = family.join(self, hidden_states, family.branch(self, hidden_states))
        return handed_on(family, stream, args)

    layer.attention_removed = True
    layer.__class__ = _namesake(type(layer), forward)


def _return_output(model: Any, family: Family, taps: bool) -> None:
    old = type(model)

    def forward(self: Any, given: Tensor) -> Any:
        if family.decoder:
            output = old.forward(self, **_inputs(self, given), use_cache=False).logits
        else:
            output = old.forward(self, given).last_hidden_state
        return (output, *_take_taps(self)) if taps else output

    def of_ids(self: Any, input_ids: Tensor) -> Any:
        return forward(self, input_ids)

    def of_pixels(self: Any, pixel_values: Tensor) -> Any:
        return forward(self, pixel_values)

    model.__class__ = _namesake(old, of_pixels if family.pixels else of_ids)
    model.__class__.family = family
    for layer in decoder_layers(model) if taps else ():
        layer.register_forward_hook(_tap)


def _namesake(old: type, forward: Callable[..., Any]) -> type:
    """Make a class of the same name; a method set on the instance would show in dynamo's module paths."""
    return type(old.__name__, (old,), {"forward": forward, "__module__": old.__module__})


def _tap(layer: Any, _args: Any, output: Any) -> None:
    layer.tap = output[0] if isinstance(output, tuple) else output


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
