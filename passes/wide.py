"""The weights of one wide FFN, whole or in slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import torch

__all__ = ["Weights", "Wide"]


@dataclass
class Wide:
    """The weights of one wide FFN; W is the sum of the blocks' intermediate sizes.

    gate, up: [W, hidden]; down: [hidden, W]; biases [W] and [hidden], None where no block needs one.
    """

    gate: torch.Tensor
    up: torch.Tensor | None
    down: torch.Tensor
    gate_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors there are, by field name."""
        pairs = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: tensor for name, tensor in pairs if tensor is not None}

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Wide:
        """The same with `change` of every tensor there is."""
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})


Weights: TypeAlias = Wide | Sequence[Wide]
"""The weights of a wide FFN, whole or in slices of its width; the first slice has the down bias."""
