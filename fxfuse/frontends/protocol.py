"""What every front end brings to the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, TypeVar

import torch

from fxfuse.passes.forms import Form
from fxfuse.passes.records import Block, Value
from fxfuse.passes.view import View
from fxfuse.passes.weights import Wide

__all__ = ["Batch", "FrontEnd", "Fused", "Runnable", "Sample"]

Sample = int
"""The place of a sample among those that are measured on."""
Fused = TypeVar("Fused")
Batch: TypeAlias = Mapping[str, torch.Tensor]
"""Inputs of a model by name, as calibration brings them: token ids [windows, context], and their masks."""


class Runnable(Protocol):
    """A graph that can be run on any batch: whole, in part, and with values in its inside replaced."""

    @property
    def view(self) -> View:
        """The graph as it is read."""

    def run(
        self, batch: Batch, wanted: Sequence[Value], known: Mapping[Value, torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """The values of `wanted`, where `known` ones are taken as given and nothing above them is computed.

        With x a block's stream, `run(batch, [block.branch], {block.x: x})` is its branch on another stream,
        `run(batch, [logits], {block.out: x})` the logits of the model from there on.

        Raises:
            InputError: The batch does not fit the model, or the model fails on it.
        """

    def logits(self, batch: Batch) -> Value:
        """The output that holds logits, [..., classes]; `batch` is run where that shows only in its shape.

        Raises:
            InputError: No output looks like logits.
        """


class FrontEnd(Protocol[Fused]):
    """A graph, the inputs it is measured on, and the runtime that measures it."""

    @property
    def view(self) -> View:
        """The graph as it is read."""

    def states(self, values: Sequence[Value]) -> list[dict[Value, torch.Tensor]]:
        """What `values` hold for every sample, in one pass over the samples; keeps the outputs too."""

    def branch(self, block: Block, x: torch.Tensor, sample: Sample) -> torch.Tensor:
        """The block's own branch in the runtime, on another stream than its own."""

    def apply(
        self,
        groups: Sequence[Sequence[Block]],
        wides: Sequence[Wide | None] | None = None,
        forms: Sequence[Form] | None = None,
    ) -> Fused:
        """A copy of the graph with every group rewritten, with weights of its own where `wides` has some.

        `forms` has a form for each group, `Form()` where it is left out; a part of a form that a group has no
        place for is left out too, and the result's `forms` are those that were written.
        """

    def onward(self, x: torch.Tensor, start: Value, stop: Value, sample: Sample) -> torch.Tensor:
        """The value `stop` in the runtime, where `start` holds x."""

    def fused_branch(self, fused: Fused, index: int, x: torch.Tensor, sample: Sample) -> torch.Tensor:
        """The wide branch of group `index` in the runtime."""

    def outputs(self, fused: Fused | None, hidden_size: int) -> tuple[str, bool, list[torch.Tensor]] | None:
        """The output to compare (its name, whether it is logits, its value for every sample)."""
