"""Whether the output's weights are the embeddings: config.json, held against the bytes in the files.

    tie_word_embeddings    lm_head.weight         the output
    false                  there                  lm_head.weight
    true                   absent                 the embeddings
    true                   the same bytes         the embeddings, and the copy is passed over
    true                   others                 lm_head.weight: transformers does not tie such either

So that everybody who reads the written config agrees, the last is told by false in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fxfuse.checkpoints.settings import setting
from fxfuse.checkpoints.tensors import Tensors

__all__ = ["as_stored"]

_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PIECE = 1 << 24  # bytes of each that are in memory at a time


def as_stored(config: Mapping[str, Any], tensors: Tensors) -> Mapping[str, Any]:
    """The config, which says that nothing is tied where an output of its own is stored."""
    if not setting(config, "tie_word_embeddings") or not _has_own_output(tensors):
        return config
    return {**config, "tie_word_embeddings": False}


def _has_own_output(tensors: Tensors) -> bool:
    """Whether both are there and differ."""
    if _HEAD not in tensors or _EMBEDDINGS not in tensors:
        return False
    head, table = tensors[_HEAD], tensors[_EMBEDDINGS]
    if (head.dtype, head.shape) != (table.dtype, table.shape):
        return True
    rows = head.shape[0] if head.shape else 1
    step = max(1, _PIECE * rows // max(1, head.nbytes))
    return not all(_equal(tensors, start, min(start + step, rows)) for start in range(0, rows, step))


def _equal(tensors: Tensors, start: int, stop: int) -> bool:
    one, other = (tensors.read(name, start, stop).reshape(-1) for name in (_HEAD, _EMBEDDINGS))
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
