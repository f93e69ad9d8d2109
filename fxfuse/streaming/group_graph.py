"""One group's FFNs as a graph, exported from the layers at hand: what recovery reads blocks and weights from.

stream -> + mlp_a(norm_a(.)) -> + mlp_(a+1)(norm_(a+1)(.)) -> ... -> stream after the group
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from fxfuse.errors import InputError
from fxfuse.frontends.torch_graph import TorchGraph
from fxfuse.frontends.torch_model import read_torch
from fxfuse.naming import span
from fxfuse.passes.chains import find_chains
from fxfuse.passes.records import Block
from fxfuse.streaming.model import DiskModel, Loaded

__all__ = ["GroupGraph", "group_graph"]


@dataclass(frozen=True)
class GroupGraph:
    """The graph of a group, and its blocks in order under the names that they have in the model."""

    front: TorchGraph
    blocks: tuple[Block, ...]


@contextlib.contextmanager
def group_graph(model: DiskModel, numbers: Sequence[int], stream: torch.Tensor) -> Iterator[GroupGraph]:
    """The graph of the FFNs `numbers` among the updates, whose weights are in memory while the context lasts.

    Args:
        model: The decoder.
        numbers: Of consecutive FFNs.
        stream: Any stream, [windows, context, hidden].

    Raises:
        InputError: The FFNs are not understood, as where their norms differ in eps.
    """
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(model.loaded(number)) for number in numbers]
        front = read_torch(_Group(parts).eval(), {"stream": stream})
        found = find_chains(front.view)
        names = [model.updates[number].name for number in numbers]
        if len(found.chains) != 1 or len(found.chains[0].blocks) != len(numbers):
            reason = f": {found.misses[0].reason}" if found.misses else ""
            raise InputError(f"{span(names)} cannot be recovered{reason}: leave recovery out, or the group.")
        blocks = zip(found.chains[0].blocks, names, strict=True)
        yield GroupGraph(front, tuple(replace(block, name=name) for block, name in blocks))


class _Group(nn.Module):
    """The FFNs of a group, one after the other."""

    def __init__(self, parts: Sequence[Loaded]) -> None:
        super().__init__()
        self.norms = nn.ModuleList([part.norm for part in parts])
        self.ffns = nn.ModuleList([part.module for part in parts])
        self.multiplier = parts[0].multiplier

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """The stream after the group."""
        for norm, ffn in zip(self.norms, self.ffns, strict=True):
            added = ffn(norm(stream))
            stream = stream + (added if self.multiplier == 1.0 else added * self.multiplier)
        return stream
