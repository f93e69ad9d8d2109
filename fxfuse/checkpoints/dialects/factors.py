"""Multipliers of a family in its weights, for formats that know none.

    x = m_e embed(ids);  x = x + m_r attention(x), scores m_a q k;  x = x + m_r ffn(x);  logits = head(x) / s

    embed m_e      q_proj m_a sqrt(d)      o_proj m_r      down_proj m_r      head 1 / s

Such is Granite. d are the channels of a head, by whose root readers of those formats divide scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fxfuse.checkpoints.settings import multiplier, setting

__all__ = ["Factors", "factors_of"]


@dataclass(frozen=True)
class Factors:
    """What weights are multiplied by, in place of a family's multipliers."""

    embeddings: float = 1.0
    queries: float = 1.0
    residual: float = 1.0
    logits: float = 1.0

    @property
    def tied(self) -> bool:
        """Whether the embeddings may still be the output's weights too."""
        return self.embeddings == self.logits


def factors_of(config: Mapping[str, Any]) -> Factors:
    """Granite's multipliers; readers divide scores by the root of a head's size."""
    if config.get("model_type") != "granite":
        return Factors()
    return Factors(
        embeddings=multiplier(config, "embedding_multiplier"),
        queries=multiplier(config, "attention_multiplier") * math.sqrt(setting(config, "head_dim")),
        residual=multiplier(config, "residual_multiplier"),
        logits=1.0 / multiplier(config, "logits_scaling"),
    )
