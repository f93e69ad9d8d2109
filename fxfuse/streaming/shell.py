"""What of a decoder is no layer: the model as it is loaded, with a stand-in for every layer.

The model lies on the meta device, where shapes take no memory. A stand-in passes the stream on and keeps what
its layer is called with: masks of its kind, rotary positions. So the model itself says what an embedding row
becomes before the first layer, and what logits the last stream gives; nothing of a family is written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from fxfuse.checkpoints.records import Checkpoint
from fxfuse.frontends.protocol import Batch
from fxfuse.loading.building import build
from fxfuse.loading.filling import fill_buffers

__all__ = ["Shell", "emptied", "filled"]


def filled(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Give a module without memory these weights, by its own names."""
    module.load_state_dict(dict(weights), strict=True, assign=True)
    module.requires_grad_(False)


def emptied(module: nn.Module) -> None:
    """Take a module's weights away again."""
    module.to("meta")


class Shell:
    """The decoder of `checkpoint` in `dtype` on `device`; `layers` are its layers, without memory."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self.model = build(checkpoint, dtype)
        self.inner = self.model.get_decoder()
        self.layers = list(self.inner.layers)
        self.stand_ins = [_StandIn() for _ in self.layers]
        self.inner.layers = nn.ModuleList(self.stand_ins)
        fill_buffers(self.model, lambda _: device)
        self.inner.embed_tokens.padding_idx = None  # rows go by other numbers here
        self.hidden_size = checkpoint.hidden_size
        self.dtype, self.device = dtype, device
        self.set_head(self._empty(self.hidden_size), self._empty(0, self.hidden_size))

    def first_stream(self, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The stream before the first layer; tokens [windows, context] are the `places` of their `rows`."""
        self.inner.embed_tokens.weight = _parameter(rows)
        self.inner(input_ids=places, use_cache=False)
        self.inner.embed_tokens.weight = _parameter(self._empty(0, self.hidden_size))
        assert self.stand_ins[0].stream is not None
        return self.stand_ins[0].stream

    def arguments(self, batch: Batch, layer: int) -> dict[str, Any]:
        """What a layer is called with beside the stream."""
        nothing = self._nothing(batch["input_ids"].shape)
        given = {name: batch[name] for name in ("attention_mask", "position_ids") if name in batch}
        self.inner(inputs_embeds=nothing, use_cache=False, **given)
        return self.stand_ins[layer].arguments

    def set_head(self, norm: torch.Tensor, head: torch.Tensor) -> None:
        """Take the weights of the last norm and of the head [vocabulary, hidden]."""
        self.inner.norm.weight = _parameter(norm)
        self.model.get_output_embeddings().weight = _parameter(head)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The logits that the last stream [windows, context, hidden] gives."""
        last = self.stand_ins[-1]
        last.given = x
        found = self.model(inputs_embeds=self._nothing(x.shape[:2]), use_cache=False).logits
        last.given = None
        return cast(torch.Tensor, found)

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _nothing(self, shape: torch.Size) -> torch.Tensor:
        """A stream of zeros that takes no memory."""
        return self._empty(1).zero_().expand(*shape, self.hidden_size)


class _StandIn(nn.Module):
    """Keeps what a layer is called with; gives the stream on, or the one that is `given`."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: torch.Tensor | None = None
        self.given: torch.Tensor | None = None
        self.arguments: dict[str, Any] = {}

    def forward(self, stream: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Keep the call."""
        self.stream, self.arguments = stream, arguments
        return stream if self.given is None else self.given


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
