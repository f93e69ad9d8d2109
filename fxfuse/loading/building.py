"""The decoder without its weights: transformers' own layers on the meta device, each as it is stored.

    LlamaForCausalLM(what all layers share)           on "meta": shapes, no memory
      model.layers.3 = LlamaDecoderLayer(own width)   layers that depart from it are built anew
      model.layers.4   without self_attn              see `fxfuse.removal.layers`
      self_attn.layer_idx = 0, 1, 2, ..               see `fxfuse.loading.caches`

The result is an ordinary model of its family: `generate`, `save_pretrained` and torch.compile know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxfuse.checkpoints.records import Checkpoint
from fxfuse.loading.caches import count_attentions
from fxfuse.loading.configs import SKIP, layer_config, overrides, shared_config
from fxfuse.removal.layers import take_out

__all__ = ["Nothing", "build"]

_SHAPES = {"intermediate_size", "num_attention_heads", "num_key_value_heads"}
"""What a layer reads when it is built and never again."""


class Nothing(nn.Module):
    """What a layer with attention alone adds in the place of an FFN.

    Its forward stays as it is, since what a caller hands to attention goes through it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros of the shape of `x`."""
        return torch.zeros_like(x)


def build(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """A model of the checkpoint's family on the meta device, in evaluation mode.

    Raises:
        InputError: transformers does not take the configuration.
    """
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    config = shared_config(checkpoint)
    own = overrides(checkpoint, config)
    with torch.device("meta"):
        model = auto.from_config(config, dtype=dtype)
        layers = model.get_submodule(checkpoint.family.layers)
        for number, each in own.items():
            if each.keys() - {SKIP}:
                layers[number] = _rebuilt(layers[number], config, each, number, dtype)
    _take_out(checkpoint, layers)
    attentions = _number_attentions(checkpoint, layers)
    if own:
        config.per_layer_config = own
        count_attentions(config, attentions, own)
    return model.eval()


def _rebuilt(layer: nn.Module, config: Any, own: Mapping[str, Any], number: int, dtype: torch.dtype) -> Any:
    """A layer of the same class with values of its own."""
    of_layer = layer_config(config, own)
    kind: Any = type(layer)
    made = kind(of_layer, number).to(dtype)
    if own.keys() <= _SHAPES | {SKIP}:
        # The model's configuration instead: what a user sets there later, as the kind of attention, is heard.
        for module in made.modules():
            if getattr(module, "config", None) is of_layer:
                module.config = config
    return made


def _take_out(checkpoint: Checkpoint, layers: Any) -> None:
    """Take absent attentions and FFNs out of the layers."""
    family = checkpoint.family
    ffn = family.down.partition(".")[0]
    for layer in checkpoint.layers:
        built, prefix = layers[layer.number], checkpoint.prefix(layer.number)
        if not layer.attention:
            take_out(built, family.attention, f"{prefix}.{family.attention}")
        if layer.ffn:
            continue
        if layer.attention:
            setattr(built, family.norm, nn.Identity())
            setattr(built, ffn, Nothing())
        else:
            take_out(built, ffn, f"{prefix}.{ffn}")


def _number_attentions(checkpoint: Checkpoint, layers: Any) -> list[int]:
    """Give each attention its entry in a cache; returns the layers that have one."""
    found = [layer.number for layer in checkpoint.layers if layer.attention]
    for entry, number in enumerate(found):
        getattr(layers[number], checkpoint.family.attention).layer_idx = entry
    return found
