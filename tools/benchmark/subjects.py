"""The models: the trained demo model, bare chains of RMSNorm-SwiGLU blocks and whole random decoders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoint import load_demo
from models.decoder import Decoder, DecoderConfig, Layer, LayerConfig
from tools.benchmark.cases import DECODER_RUN, DECODERS, shape_of

__all__ = ["Chain", "Size", "Wide", "build", "draw_input", "size_of", "without_ffns"]

VOCABULARY = 32000


class Chain(nn.Module):
    """FFN blocks and nothing else: x + FFN1(norm1(x)), and so on, on `[1, tokens, hidden_size]`."""

    def __init__(self, hidden_size: int, intermediate_size: int, length: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        config = DecoderConfig(hidden_size=hidden_size, num_heads=1)
        layer = LayerConfig(attention=False, intermediate_size=intermediate_size)
        self.layers = nn.ModuleList(Layer(config, layer) for _ in range(length))

    def forward(self, x: Tensor) -> Tensor:
        """Map the residual stream to what it is after the last block."""
        for layer in self.layers:
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return x


class Wide(nn.Module):
    """A chain as one wide FFN, by hand: gains folded in, gate and up stacked by rows, down by columns."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        layers = list(chain.layers)
        first = layers[0].post_attention_layernorm
        self.norm = nn.RMSNorm(first.normalized_shape, eps=first.eps, dtype=first.weight.dtype)
        gains = [layer.post_attention_layernorm.weight for layer in layers]
        parts = [layer.mlp for layer in layers]
        pairs = list(zip(parts, gains, strict=True))
        with torch.no_grad():
            self.gate = nn.Parameter(torch.cat([part.gate_proj.weight * gain for part, gain in pairs]))
            self.up = nn.Parameter(torch.cat([part.up_proj.weight * gain for part, gain in pairs]))
            self.down = nn.Parameter(torch.cat([part.down_proj.weight for part in parts], dim=1))
        self.hidden_size = chain.hidden_size

    def forward(self, x: Tensor) -> Tensor:
        """Map the residual stream to the sum of all FFNs on it."""
        y = self.norm(x)
        inner = F.silu(F.linear(y, self.gate)) * F.linear(y, self.up)
        return x + F.linear(inner, self.down)


class AttentionOnly(nn.Module):
    """A layer whose FFN is gone."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = layer.input_layernorm, layer.self_attn

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map the residual stream to the next layer's."""
        return x + self.self_attn(self.input_layernorm(x), cos, sin)


def build(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model of that name; the same weights in every process, made on the device and in the type."""
    if name == "demo":
        return load_demo().to(device, dtype)
    torch.manual_seed(0)
    shape = shape_of(name)
    with _made_on(device, dtype):
        if shape is None:
            return Decoder(_decoder(name)).eval()
        chain = Chain(shape.hidden, shape.width, shape.blocks)
        for layer in chain.layers:
            nn.init.normal_(layer.post_attention_layernorm.weight, mean=1.0, std=0.1)
    return chain.eval()


def _decoder(name: str) -> DecoderConfig:
    hidden, width, depth = DECODERS[name]
    layers = (LayerConfig(intermediate_size=width),) * depth
    config = DecoderConfig(vocab_size=VOCABULARY, hidden_size=hidden, num_heads=hidden // 64, layers=layers)
    first = (depth - DECODER_RUN) // 2
    return config.without_attention(range(first + 1, first + DECODER_RUN))


@contextlib.contextmanager
def _made_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """New tensors are on the device and of the type: no second copy in float32 anywhere."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def draw_input(model: nn.Module, tokens: int) -> Tensor:
    """Token ids `[1, tokens]`, or a residual stream whose values every 16-bit type holds; on the CPU."""
    generator = torch.Generator().manual_seed(tokens)
    if isinstance(model, Decoder):
        return torch.randint(model.config.vocab_size, (1, tokens), generator=generator)
    drawn = torch.randn(1, tokens, model.hidden_size, generator=generator)
    return torch.where(drawn.abs() < 2**-10, 0.0, drawn).bfloat16().float()


def without_ffns(model: Decoder) -> nn.Module:
    """The same model with every chain's FFNs removed: the bound that no fusion can pass."""
    in_chains = {index for chain in model.config.ffn_chains() for index in chain}
    kept = [
        AttentionOnly(layer) if index in in_chains else layer
        for index, layer in enumerate(model.layers)
        if index not in in_chains or layer.self_attn is not None
    ]
    model.layers = nn.ModuleList(kept)
    return model


@dataclass(frozen=True)
class Size:
    """What one call reads and computes at least: weights of all products, and of those in FFN chains."""

    weights: int
    in_chains: int


def size_of(model: nn.Module) -> Size:
    """Counted on the model; of an embedding only the rows that are looked up are read, so none counts."""
    total = sum(_weights(part) for part in model.modules() if isinstance(part, nn.Linear))
    layers = list(_chain_layers(model))
    inner = sum(_weights(p) for layer in layers for p in layer.mlp.modules() if isinstance(p, nn.Linear))
    return Size(total, inner)


def _weights(linear: nn.Module) -> int:
    return int(linear.weight.numel())


def _chain_layers(model: nn.Module) -> Iterable[nn.Module]:
    if not isinstance(model, Decoder):
        return list(model.layers)
    return [model.layers[index] for chain in model.config.ffn_chains() for index in chain]
