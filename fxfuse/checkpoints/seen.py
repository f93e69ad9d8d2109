"""A checkpoint as a reader's rules look at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fxfuse.checkpoints.records import Checkpoint
from fxfuse.checkpoints.settings import rope_of

__all__ = ["Rule", "Seen"]


@dataclass(frozen=True)
class Seen:
    """A checkpoint, and its block_configs as they stand in config.json."""

    checkpoint: Checkpoint

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json."""
        return self.checkpoint.config

    @property
    def entries(self) -> list[Mapping[str, Any]]:
        """Those of block_configs, which opening found to be as many as layers."""
        return list(self.config["block_configs"])

    @cached_property
    def rope(self) -> dict[str, Any]:
        """Rotary embeddings."""
        return rope_of(self.config)


Rule = Callable[[Seen], Iterator[str]]
"""What is wrong, as the end of a sentence that begins with the reader's name."""
