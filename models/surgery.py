"""Which attentions matter least, and the decoder without them.

An attention is scored by the cosine of x and x + Attn(norm(x)) (LLM-Drop, arXiv 2406.15786: near 1 means it
changes little) and by the loss that leaving it out adds. Single scores do not add up, so the window to
remove is chosen by the loss of the model without all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.decoder import Decoder
from models.evaluate import nats_per_byte, predictor

__all__ = ["Importance", "attention_cosines", "measure_importance", "remove_attention", "without_attention"]


@dataclass(frozen=True)
class Importance:
    """`cosines` and `added_loss` by layer, `window_loss` by the first layer of each window that may go."""

    cosines: list[float]
    added_loss: list[float]
    window_loss: dict[int, float]

    def best_window(self, size: int) -> range:
        """Return the window whose removal adds the least loss."""
        first = min(self.window_loss, key=self.window_loss.__getitem__)
        return range(first, first + size)


@contextmanager
def without_attention(model: Decoder, removed: range) -> Iterator[None]:
    """Leave the attention of these layers out while the context lasts."""
    layers = [model.layers[i] for i in removed]
    kept = [layer.self_attn for layer in layers]
    for layer in layers:
        layer.self_attn = None
    try:
        yield
    finally:
        for layer, attention in zip(layers, kept, strict=True):
            layer.self_attn = attention


def remove_attention(model: Decoder, removed: range) -> Decoder:
    """Return a new decoder with the same weights and no attention in these layers."""
    smaller = Decoder(model.config.without_attention(removed))
    weights = model.state_dict()
    smaller.load_state_dict({name: weights[name] for name in smaller.state_dict()})
    return smaller


@torch.inference_mode()
def attention_cosines(model: Decoder, ids: Tensor) -> list[float]:
    """Return for each layer the mean cosine of the residual stream before and after its attention."""
    before: list[Tensor] = []
    cosines: list[float] = []

    def compare(_: nn.Module, __: tuple[Tensor, ...], added: Tensor) -> None:
        cosines.append(F.cosine_similarity(before[-1], before[-1] + added, dim=-1).mean().item())

    hooks = []
    for layer in model.layers:
        hooks.append(layer.register_forward_pre_hook(lambda _, args: before.append(args[0])))
        hooks.append(layer.self_attn.register_forward_hook(compare))
    model.eval()(ids)
    for hook in hooks:
        hook.remove()
    return cosines


def measure_importance(model: Decoder, data: NDArray[np.uint8], size: int, context: int = 256) -> Importance:
    """Score each attention of a dense model, and each window of `size` that leaves the first and the last."""
    depth = len(model.layers)
    whole = nats_per_byte(predictor(model), data, context).mean

    def added_loss(removed: range) -> float:
        with without_attention(model, removed):
            return nats_per_byte(predictor(model), data, context).mean - whole

    ids = torch.from_numpy(data[: len(data) // context * context].astype(np.int64)).view(-1, context)[:64]
    singles = [added_loss(range(i, i + 1)) for i in range(depth)]
    windows = {i: added_loss(range(i, i + size)) for i in range(1, depth - size)}
    return Importance(attention_cosines(model, ids), singles, windows)
