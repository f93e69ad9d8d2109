"""A Llama-style decoder whose layers may lack attention and may each have their own width.

    x ──┬─ input_layernorm ─ self_attn ─ (+) ──┬─ post_attention_layernorm ─ mlp ─ (+) ── next layer
        └──────────────────────────────────┘   └──────────────────────────────────┘

A layer without attention is its right half alone, so k such layers in a row make a chain of k + 1 FFNs: the
FFN of the layer before them starts it. Parameters are named as in transformers' Llama, without the leading
`model.`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Decoder", "DecoderConfig", "LayerConfig", "rotate"]

NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "rms": lambda size, eps: nn.RMSNorm(size, eps=eps),
    "layer": lambda size, eps: nn.LayerNorm(size, eps=eps),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class LayerConfig:
    """One layer: whether it has attention, and the width of its FFN."""

    attention: bool = True
    intermediate_size: int = 512


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder; `norm`, `activation`, `gated` and `bias` hold for all of its layers."""

    vocab_size: int = 256
    hidden_size: int = 192
    num_heads: int = 6
    rope_theta: float = 10000.0
    eps: float = 1e-5
    norm: str = "rms"
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    layers: tuple[LayerConfig, ...] = (LayerConfig(),) * 12

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of twice num_heads {self.num_heads}"
            )
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r} is none of {sorted(NORMS)}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is none of {sorted(ACTIVATIONS)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DecoderConfig:
        """Read what `to_dict` wrote; an unknown field is a TypeError."""
        return cls(**{**values, "layers": tuple(LayerConfig(**layer) for layer in values["layers"])})

    def without_attention(self, removed: range) -> DecoderConfig:
        """Return the same configuration with the attention of the layers in `removed` taken out."""
        layers = (
            replace(layer, attention=False) if i in removed else layer for i, layer in enumerate(self.layers)
        )
        return replace(self, layers=tuple(layers))

    def ffn_chains(self) -> list[range]:
        """Return the layers whose FFNs follow each other with no attention between, longest runs only."""
        starts = [i for i, layer in enumerate(self.layers) if layer.attention or i == 0]
        runs = (range(a, b) for a, b in zip(starts, [*starts[1:], len(self.layers)], strict=True))
        return [run for run in runs if len(run) > 1]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding, in transformers' half-split layout, to `[B, heads, T, head_size]`."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        size, self.num_heads = config.hidden_size, config.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(size, size, bias=config.bias) for _ in range(4)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map `[B, T, hidden_size]` to the same shape."""
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = self.mix(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return softmax(q k' / sqrt(head_size), causal) v, all `[B, heads, T, head_size]`."""
        if not self.training:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        # On a CPU the written-out form trains in a third of the time of torch's flash attention.
        length, scale = q.shape[2], q.shape[3] ** -0.5
        mask = torch.full((length, length), float("-inf"), device=q.device, dtype=v.dtype).triu(1)
        scores = torch.baddbmm(mask, q.flatten(0, 1).to(v.dtype), k.flatten(0, 1).to(v.dtype).mT, alpha=scale)
        return torch.bmm(scores.softmax(-1).to(v.dtype), v.flatten(0, 1)).view_as(v)


class FFN(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) where it is not gated."""

    def __init__(self, config: DecoderConfig, width: int) -> None:
        super().__init__()
        size, self.act = config.hidden_size, ACTIVATIONS[config.activation]
        self.gate_proj = nn.Linear(size, width, bias=config.bias) if config.gated else None
        self.up_proj = nn.Linear(size, width, bias=config.bias)
        self.down_proj = nn.Linear(width, size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, T, hidden_size]` to the same shape."""
        if self.gate_proj is None:
            return self.down_proj(self.act(self.up_proj(x)))
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention, where there is one, then an FFN; each reads a norm of the residual stream and adds to it."""

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        super().__init__()
        norm = NORMS[config.norm]
        self.input_layernorm = norm(config.hidden_size, config.eps) if layer.attention else None
        self.self_attn = Attention(config) if layer.attention else None
        self.post_attention_layernorm = norm(config.hidden_size, config.eps)
        self.mlp = FFN(config, layer.intermediate_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map the residual stream `[B, T, hidden_size]` to the next layer's."""
        if self.self_attn is not None and self.input_layernorm is not None:
            x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """A causal language model over bytes (or any vocabulary of `config.vocab_size`)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in config.layers)
        self.norm = NORMS[config.norm](config.hidden_size, config.eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of positions 0..length-1, `[length, head_size / 2]` in float32."""
        half = self.config.hidden_size // self.config.num_heads // 2
        inverse = self.config.rope_theta ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
        angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * inverse
        return angles.cos(), angles.sin()

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map token ids `[B, T]` to the logits of each next token, `[B, T, vocab_size]`."""
        cos, sin = self.rotary(input_ids.shape[1], input_ids.device)
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))
