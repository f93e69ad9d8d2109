"""A tiny decoder, and its forward written by hand so that any update can be left out and any group fused.

    attention 0, FFN 0; attention 1, FFN 1; FFN 2; FFN 3; FFN 4; attention 5, FFN 5; FFN 6

so that the chains are the FFNs of layers 1 to 4 and of layers 5, 6. Nothing of fxfuse is used.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.decoder import Decoder, DecoderConfig, LayerConfig

VOCAB, HIDDEN, CONTEXT = 50, 32, 12
CHAINS = ((1, 2, 3, 4), (5, 6))
NAMES = [[f"layers.{index}.mlp" for index in chain] for chain in CHAINS]
ATTENTION = [0, 1, 5]


@functools.cache
def tiny(seed: int = 0, **shape: object) -> Decoder:
    """The decoder with random weights whose updates matter; leave it as it is."""
    torch.manual_seed(seed)
    layers = tuple(LayerConfig(index in ATTENTION, 24 + 8 * index) for index in range(7))
    model = Decoder(DecoderConfig(VOCAB, HIDDEN, num_heads=2, layers=layers, **shape))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("down_proj.weight", "o_proj.weight")):
                weight.mul_(3.0)
            if "norm" in name and name.endswith("weight"):
                weight.add_(0.3 * torch.randn_like(weight))
    return model.eval().requires_grad_(False)


def windows(count: int = 10, seed: int = 1, context: int = CONTEXT) -> Tensor:
    """Token ids [count, context]."""
    return torch.randint(0, VOCAB, (count, context), generator=torch.Generator().manual_seed(seed))


@dataclass
class Trace:
    """What a forward computed: the stream before every update, what it adds, and the logits."""

    streams: dict[str, Tensor] = field(default_factory=dict)
    added: dict[str, Tensor] = field(default_factory=dict)
    ends: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


@torch.no_grad()
def forward(
    model: Decoder, ids: Tensor, left_out: Collection[str] = (), groups: Sequence[Sequence[int]] = ()
) -> Trace:
    """The decoder's forward, without the updates `left_out` and with the FFNs of each group on one stream."""
    found, starts = Trace(), {layer: group[0] for group in groups for layer in group}
    cos, sin = model.rotary(ids.shape[1], ids.device)
    x, held = model.embed_tokens(ids), torch.empty(0)
    for index, layer in enumerate(model.layers):
        if layer.self_attn is not None:
            name = f"layers.{index}.self_attn"
            h = layer.self_attn(layer.input_layernorm(x), cos, sin)
            found.streams[name], found.added[name] = x, h
            x = x if name in left_out else x + h
            found.ends[name] = x
        name = f"layers.{index}.mlp"
        if starts.get(index) == index:
            held = x
        source = held if index in starts else x
        h = layer.mlp(layer.post_attention_layernorm(source))
        found.streams[name], found.added[name] = source, h
        x = x if name in left_out else x + h
        found.ends[name] = x
    found.logits = model.lm_head(model.norm(x))
    return found


def kl(original: Tensor, changed: Tensor) -> tuple[float, float]:
    """KL(original || changed) in nats, mean over tokens, and its standard error over windows."""
    log_p, log_q = original.double().log_softmax(-1), changed.double().log_softmax(-1)
    means = (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)
    return float(means.mean()), float(means.std() / len(means) ** 0.5)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of every token."""
    a, b = one.double(), other.double()
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
