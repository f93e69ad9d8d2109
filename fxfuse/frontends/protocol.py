"""What every front end brings to the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch

from fxfuse.passes.records import Block, Value
from fxfuse.passes.view import View

__all__ = ["FrontEnd", "Fused", "Sample"]

Sample = int
"""The place of a sample among those that are measured on."""
Fused = TypeVar("Fused")


class FrontEnd(Protocol[Fused]):
    """A graph, the inputs it is measured on, and the runtime that measures it."""

    @property
    def view(self) -> View:
        """The graph as it is read."""

    def states(self, values: Sequence[Value]) -> list[dict[Value, torch.Tensor]]:
        """What `values` hold for every sample, in one pass over the samples; keeps the outputs too."""

    def branch(self, block: Block, x: torch.Tensor, sample: Sample) -> torch.Tensor:
        """The block's own branch in the runtime, on another stream than its own."""

    def apply(self, groups: Sequence[Sequence[Block]]) -> Fused:
        """A copy of the graph with every group rewritten."""

    def fused_branch(self, fused: Fused, index: int, x: torch.Tensor, sample: Sample) -> torch.Tensor:
        """The wide branch of group `index` in the runtime."""

    def outputs(self, fused: Fused | None, hidden_size: int) -> tuple[str, bool, list[torch.Tensor]] | None:
        """The output to compare (its name, whether it is logits, its value for every sample)."""
