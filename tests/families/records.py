"""What a family's record says: how its layers are written and what is there to find.

x = join(x, branch(x))        branch(x) = ffn(norm(x))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

HIDDEN, INTERMEDIATE, VOCAB = 64, 96, 128
"""96 is none of the other sizes, and a whole number of the blocks of 32 that weights are quantised in."""

REMOVED = (1, 2, 4)
"""The layers that lose their attention, of five: a chain may start in a layer that still has its own."""

Branch = Callable[[Any, Tensor], Tensor]
Join = Callable[[Any, Tensor, Tensor], Tensor]


def mlp_branch(layer: Any, x: Tensor) -> Tensor:
    branch: Tensor = layer.mlp(layer.post_attention_layernorm(x))
    return branch


def stream_first(layer: Any, x: Tensor, branch: Tensor) -> Tensor:
    return x + branch


def branch_first(layer: Any, x: Tensor, branch: Tensor) -> Tensor:
    return branch + x


@dataclass(frozen=True)
class Family:
    """How to build one family, and which chains of two blocks or more are left when REMOVED goes.

    `why` says why these are not (3, 2); `blocks` counts the FFN blocks of the model left whole. `attention`
    and `ffn` are paths below a layer; `branch` is what a layer's FFN adds to the stream, its norm included.
    In a `parallel` family it stands beside the attention.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    chains: tuple[int, ...] = (3, 2)
    why: str = ""
    blocks: int = 5
    branch: Branch = mlp_branch
    join: Join = stream_first
    attention: str = "self_attn"
    ffn: str = "mlp"
    head: str = "ForCausalLM"
    pixels: bool = False
    parallel: bool = False
    grouped_heads: bool = True
    offset_gain: bool = False
    embedding_std: float = 1.0
    implementation: str = "sdpa"

    @property
    def decoder(self) -> bool:
        """Whether the model gives logits; encoders give hidden states."""
        return self.head in ("ForCausalLM", "LMHeadModel")


def handed_on(family: Family, stream: Tensor, args: tuple[Any, ...]) -> Any:
    """What a layer returns: T5's hand on the position bias too, which the first one computed."""
    return (stream, args[1], None) if family.name == "T5" else stream


def clamped(layer: Any, x: Tensor, branch: Tensor) -> Tensor:
    """T5 clamps a float16 stream after each part."""
    total = x + branch
    if total.dtype != torch.float16:
        return total
    most = torch.finfo(total.dtype).max
    bound = torch.where(torch.isinf(total).any(), most - 1000, most)
    return torch.clamp(total, min=-bound, max=bound)
