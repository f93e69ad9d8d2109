"""Notice that a parameter changed after its wide copy was made; a stale answer must not happen.

A tensor is taken for unchanged while it is at the same address with the same version counter, which costs a
few microseconds a call for all of them. Writes through `.data` leave no mark on the counter, so some elements
of every tensor are compared as well (see `Samples`): that finds whole-tensor writes (load, scale, merge),
though not the change of a single element. On a GPU, which must not be waited for, it finds them after at most
16 calls and as many as the GPU is behind; every other change is noticed at once there too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import fx

from fxfuse.one_copy import Shared
from fxfuse.passes.fx.view import FxView
from fxfuse.passes.records import Block
from fxfuse.passes.weights import Weights, refill
from fxfuse.samples import Samples

__all__ = ["Followed", "Watch"]

_POINTER = torch.Tensor.data_ptr
_VERSION = attrgetter("_version")
_TRAINED = attrgetter("requires_grad")


@dataclass
class Followed:
    """One group: its wide weights, and the placeholders that they were computed from.

    `positions` are those placeholders with their places among the call's arguments. `shared` tells which of
    them are views of the wide weights, None where none is.
    """

    view: FxView
    blocks: Sequence[Block]
    wide: Weights
    positions: Sequence[tuple[fx.Node, int]]
    shared: Shared | None = None

    def refresh(self, args: Sequence[Any]) -> None:
        """Write the wide weights anew from the arguments, in place.

        Raises:
            RuntimeError: A parameter asks for a gradient, which the wide copy would not give it.
        """
        if torch.is_grad_enabled() and any(args[place].requires_grad for _, place in self.positions):
            raise RuntimeError(
                "A parameter of a fused block requires a gradient now, which its wide copy cannot pass on: "
                "call torch.compiler.reset() and compile again, or run under torch.no_grad()."
            )
        self.view.weights.update((node, args[place]) for node, place in self.positions)
        if self.shared is not None:
            self.shared.rejoin(self.view)
        refill(self.view, self.blocks, self.wide)
        if self.shared is not None:
            self.shared.neutralise(self.view)

    def in_place(self, node: fx.Node) -> bool:
        """Whether the wide weights are the tensor's own memory, and so hold whatever is written there."""
        return self.shared is not None and node in self.shared.slices


class Watch:
    """Watches all tensors that the wide weights of a graph were computed from.

    Numbers that dynamo passes as tensors (an eps) arrive as new objects every time and are compared by value.
    """

    def __init__(self, groups: Sequence[Followed]) -> None:
        self._groups = groups
        self._note({place: group.view.weights[node] for group in groups for node, place in group.positions})

    def is_stale(self, args: Sequence[Any]) -> bool:
        """Whether any watched tensor differs from the one that the wide weights were made of."""
        tensors = self._tensors(args)
        return (
            [*map(_POINTER, tensors)] != self._pointers
            or [*map(_VERSION, self._counted(args))] != self._versions
            or (torch.is_grad_enabled() and [*map(_TRAINED, tensors)] != self._trained)
            or any(float(args[place]) != known for place, known in self._numbers)
            or self._samples.differ()
        )

    def refresh(self, args: Sequence[Any]) -> None:
        """Bring the wide weights up to date with the arguments.

        Raises:
            RuntimeError: See `Followed.refresh`.
        """
        for group in self._groups:
            group.refresh(args)
        self._note({place: args[place] for group in self._groups for _, place in group.positions})

    def _note(self, tensors: dict[int, torch.Tensor]) -> None:
        free = {place for group in self._groups for node, place in group.positions if group.in_place(node)}
        numbers = {place: each for place, each in tensors.items() if each.dim() == 0 and not each.is_cuda}
        places = [place for place in tensors if place not in numbers]
        watched = [place for place in places if place not in free]
        counted = [place for place in watched if not tensors[place].is_inference()]
        self._tensors, self._counted = _picker(places), _picker(counted)
        self._numbers = [(place, float(each)) for place, each in numbers.items()]
        self._pointers = [tensors[place].data_ptr() for place in places]
        self._trained = [tensors[place].requires_grad for place in places]
        self._versions = [tensors[place]._version for place in counted]
        self._samples = Samples([tensors[place] for place in watched])


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function that takes out of the arguments those at `places`."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda args: [args[place] for place in places]
