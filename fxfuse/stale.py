"""Notice that a parameter changed after its wide copy was made; a stale answer must not happen.

A tensor is taken for unchanged while it is the same object at the same address with the same version counter.
Writes through `.data` leave no mark on the counter, so a few elements of every tensor are compared as well:
that finds whole-tensor writes (load, scale, merge), though not the change of a single element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxfuse.passes.fx.view import FxView
from fxfuse.passes.records import Block
from fxfuse.passes.weights import Wide, refill

__all__ = ["Watch"]

_SAMPLES = 8


class Watch:
    """Watches the tensors that one group's wide weights were computed from.

    `positions` are the placeholders of those tensors, with their places among the call's arguments. Numbers
    that dynamo passes as tensors (an eps) arrive as new objects every time and are compared by value.
    """

    def __init__(
        self, view: FxView, blocks: Sequence[Block], wide: Wide, positions: Sequence[tuple[fx.Node, int]]
    ) -> None:
        self._view, self._blocks, self._wide = view, blocks, wide
        self._positions = list(positions)
        self._places = [place for _, place in positions]
        self._note([view.weights[node] for node, _ in positions])

    def is_stale(self, args: Sequence[Any]) -> bool:
        """Whether any watched tensor differs from the one that the wide weights were made of."""
        for place, known in zip(self._places, self._known, strict=True):
            if _mark(args[place]) != known:
                return True
        return not self._same_samples()

    def refresh(self, args: Sequence[Any]) -> None:
        """Write the wide weights anew from the arguments, in place.

        Raises:
            RuntimeError: A parameter asks for a gradient, which the wide copy would not give it.
        """
        tensors = [args[place] for place in self._places]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise RuntimeError(
                "A parameter of a fused block requires a gradient now, which its wide copy cannot pass on: "
                "call torch.compiler.reset() and compile again, or run under torch.no_grad()."
            )
        self._view.weights.update((node, args[place]) for node, place in self._positions)
        refill(self._view, self._blocks, self._wide)
        self._note(tensors)

    def _note(self, tensors: Sequence[torch.Tensor]) -> None:
        self._known = [_mark(each) for each in tensors]
        with torch.no_grad():
            self._samples = [_sample(each) for each in tensors if each.dim()]
            self._values = torch.cat(self._samples) if self._samples else torch.empty(0)

    def _same_samples(self) -> bool:
        if not self._samples or (self._values.is_cuda and torch.cuda.is_current_stream_capturing()):
            return True
        with torch.no_grad():
            return torch.equal(torch.cat(self._samples), self._values)


def _mark(tensor: torch.Tensor) -> tuple[object, ...]:
    """What tells one state of a tensor from another without reading its elements; a number is its value."""
    if tensor.dim() == 0:
        return (float(tensor),)
    return tensor.data_ptr(), _version(tensor), tensor.requires_grad


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """A view of a few elements spread over the tensor."""
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().select(0, 0).reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
