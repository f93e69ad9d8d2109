"""What a drawn decoder means: blocks, what breaks the chain between them, and the fused form in float64.

    run of blocks i..j with nothing between:   x + sum_k branch_k(x)
    anything else:                              one after the other

Nothing of fxfuse is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "BREAKS", "Branch", "Meaning", "fused", "meanings", "runs"]

Branch = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
BREAKS = ("eps", "activation", "tap", "mixing", "scaled", "norm")
"""Why a block cannot join the one before it: another eps, activation or norm; the stream is an output, has
another branch added, or is multiplied."""


@dataclass(frozen=True)
class Meaning:
    """One block: act(gate h) * up h, or act(gate h), where h = norm(x) * gain + shift; and what precedes."""

    norm: str
    eps: float
    activation: str
    gated: bool
    width: int
    biased: bool
    multiplier: float
    before: str | None

    def branch(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """FFN(norm(x)) of x [..., hidden]; weights are [out, in]."""
        h = x - x.mean(-1, keepdim=True) if self.norm == "layer" else x
        h = h / torch.sqrt((h * h).mean(-1, keepdim=True) + self.eps) * weights["gain"]
        h = h + weights["shift"] if self.norm == "layer" else h

        def product(name: str, value: Tensor) -> Tensor:
            y = value @ weights[name].T
            return y + weights[f"{name}_bias"] if self.biased else y

        inner = ACTIVATIONS[self.activation](product("gate", h))
        inner = inner * product("up", h) if self.gated else inner
        return self.multiplier * product("down", inner)


@st.composite
def meanings(draw: st.DrawFn, most: int = 5) -> list[Meaning]:
    """One to `most` blocks in a row, alike but for width, bias and what breaks the chain."""
    norm, gated = draw(st.sampled_from(["rms", "layer"])), draw(st.booleans())
    activation, eps = draw(st.sampled_from(sorted(ACTIVATIONS))), draw(st.sampled_from([1e-5, 1e-3]))
    blocks: list[Meaning] = []
    for index in range(draw(st.integers(1, most))):
        before = draw(st.sampled_from([None, None, None, *BREAKS])) if index else None
        if before == "eps":
            eps = 1.5e-4 - eps if eps < 1e-4 else 1e-5
        if before == "activation":
            names = sorted(ACTIVATIONS)
            activation = names[(names.index(activation) + 1) % len(names)]
        if before == "norm":
            norm = "layer" if norm == "rms" else "rms"
        width, biased = draw(st.sampled_from([1, 2, 5, 12, 16])), draw(st.booleans())
        multiplier = draw(st.sampled_from([1.0, 1.0, 0.5]))
        blocks.append(Meaning(norm, eps, activation, gated, width, biased, multiplier, before))
    return blocks


def runs(blocks: Sequence[Meaning], alone: int | None = None) -> list[list[int]]:
    """The indices of the blocks that belong together; block `alone` belongs to none."""
    found: list[list[int]] = []
    for index, block in enumerate(blocks):
        if block.before is not None or alone in (index, index - 1) or not found:
            found.append([])
        found[-1].append(index)
    return [run for run in found if run != [alone]]


def fused(
    blocks: Sequence[Meaning],
    branches: Sequence[Branch],
    x: Tensor,
    between: Callable[[str, Tensor], Tensor],
    alone: int | None = None,
) -> Tensor:
    """The decoder with each run of blocks in parallel; `between` is what stands on the stream."""
    members = {run[0]: run for run in runs(blocks, alone)}
    for index, block in enumerate(blocks):
        x = between(block.before, x) if block.before in ("mixing", "scaled") else x
        if index == alone:
            x = x + branches[index](x)
        elif index in members:
            x = x + sum(branches[each](x) for each in members[index])
    return x
