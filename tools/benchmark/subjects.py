"""The models: the trained demo model, and bare chains of eight RMSNorm-SwiGLU blocks with random weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from models.checkpoint import load_demo
from models.decoder import Decoder, DecoderConfig, Layer, LayerConfig

__all__ = ["Chain", "build", "draw_input", "run_parallel"]

CHAINS = {"chain-256": (256, 704), "chain-1024": (1024, 2816)}
"""Hidden and intermediate size of each bare chain."""

LENGTH = 8


class Chain(nn.Module):
    """FFN blocks and nothing else: x + FFN1(norm1(x)), and so on, on `[1, tokens, hidden_size]`."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        config = DecoderConfig(hidden_size=hidden_size, num_heads=1)
        layer = LayerConfig(attention=False, intermediate_size=intermediate_size)
        self.layers = nn.ModuleList(Layer(config, layer) for _ in range(LENGTH))

    def forward(self, x: Tensor) -> Tensor:
        """Map the residual stream to what it is after the last block."""
        for layer in self.layers:
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return x


def build(name: str) -> nn.Module:
    """The model of that name, in float32; the same weights in every process."""
    if name == "demo":
        return load_demo()
    torch.manual_seed(0)
    chain = Chain(*CHAINS[name])
    for layer in chain.layers:
        nn.init.normal_(layer.post_attention_layernorm.weight, mean=1.0, std=0.1)
    return chain.eval()


def draw_input(model: nn.Module, tokens: int) -> Tensor:
    """Token ids `[1, tokens]`, or a residual stream whose values every 16-bit type holds."""
    generator = torch.Generator().manual_seed(tokens)
    if isinstance(model, Decoder):
        return torch.randint(model.config.vocab_size, (1, tokens), generator=generator)
    hidden_size = model.layers[0].mlp.up_proj.in_features
    return torch.randn(1, tokens, hidden_size, generator=generator).bfloat16().float()


def run_parallel(model: nn.Module, x: Tensor) -> Tensor:
    """What fusing every chain whole must give, written by hand: x + sum of FFN_i(norm_i(x))."""
    if not isinstance(model, Decoder):
        return _add_ffns(x, model.layers)
    cos, sin = model.rotary(x.shape[1], x.device)
    chains = {chain.start: chain for chain in model.config.ffn_chains()}
    x, index = model.embed_tokens(x), 0
    while index < len(model.layers):
        group = chains.get(index, range(index, index + 1))
        first = model.layers[index]
        if first.self_attn is not None:
            x = x + first.self_attn(first.input_layernorm(x), cos, sin)
        x, index = _add_ffns(x, [model.layers[i] for i in group]), group.stop
    return model.lm_head(model.norm(x))


def _add_ffns(x: Tensor, layers: Iterable[nn.Module]) -> Tensor:
    return x + sum(layer.mlp(layer.post_attention_layernorm(x)) for layer in layers)
