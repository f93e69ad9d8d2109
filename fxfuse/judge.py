"""Measure fusion loss before anything is written, and hold what was written against float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic

import torch

from fxfuse import reference
from fxfuse.budget import Budget
from fxfuse.errors import InputError, VerificationError
from fxfuse.frontends.protocol import FrontEnd, Fused, Sample
from fxfuse.naming import span
from fxfuse.numerics import EndToEnd, GroupError, end_to_end, group_error, is_finite, relative_error
from fxfuse.passes.records import Block
from fxfuse.plan import Group
from fxfuse.report import GroupReport

__all__ = ["Judge"]

_TOKENS = 256
"""Tokens on which the rewrite error is measured."""


class Judge(Generic[Fused]):
    """Measures groups on the states of the sequential model."""

    def __init__(self, front: FrontEnd[Fused], blocks: Sequence[Block]) -> None:
        self.front = front
        self.hidden_size = blocks[0].hidden_size
        self.states = front.states([value for block in blocks for value in (block.x, block.out)])
        for block in blocks:
            if not is_finite([state[value] for state in self.states for value in (block.x, block.out)]):
                raise InputError(
                    f"The original model gives NaN or infinity at {block.name}: check its weights or give "
                    "other measuring inputs."
                )

    def loss(self, blocks: Sequence[Block]) -> GroupError:
        """The fusion loss of `blocks` as one group, before anything is written."""
        first, last = blocks[0], blocks[-1]
        fused = []
        for sample, state in enumerate(self.states):
            x = state[first.x]
            fused.append(x.double() + self._parallel(blocks, x, sample))
        return group_error([s[first.x] for s in self.states], [s[last.out] for s in self.states], fused)

    def verify(self, fused: Fused, index: int, group: Group) -> GroupReport:
        """Hold the wide FFN against the hand-written parallel sum in float64, on some of the tokens."""
        first, view = group.blocks[0], self.front.view
        dtype = getattr(torch, first.dtype)
        wide, plain, exact, typed = [], [], [], []
        finite = True
        for sample, state in enumerate(self.states):
            x = state[first.x]
            rows = _some_rows(x)
            whole = self.front.fused_branch(fused, index, x, sample)
            finite = finite and is_finite([whole])
            wide.append(rows(whole))
            plain.append(rows(self._parallel(group.blocks, x, sample)))
            exact.append(reference.parallel(view, group.blocks, rows(x), torch.float64))
            typed.append(reference.parallel(view, group.blocks, rows(x), dtype))
        target = torch.cat(exact)
        error = relative_error(torch.cat(wide), target)
        ideal = relative_error(torch.cat(typed), target)
        rounding = max(ideal, relative_error(torch.cat(plain), target))
        self._check(group, error if finite else math.inf, rounding, ideal)
        loss = group.error
        return GroupReport(
            group.names, sum(block.intermediate_size for block in group.blocks), error,
            loss.sqnr_db, loss.cosine, loss.relative_error, rounding,
        )  # fmt: skip

    def _parallel(self, blocks: Sequence[Block], x: torch.Tensor, sample: Sample) -> torch.Tensor:
        """The sum of the blocks' own branches on the same stream, each computed by the runtime."""
        total = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        for block in blocks:
            total += self.front.branch(block, x, sample).double()
        return total

    def _check(self, group: Group, error: float, rounding: float, ideal: float) -> None:
        """Rounding explains at most twice the unfused form's error; anything above is a bug.

        Products of one or two tokens are summed one term after the other, so that their rounding grows with
        the root of the width: a group of n blocks is allowed 1.25 sqrt(n) where that is more than 2.
        """
        where = span(group.names)
        resolution = _resolution(group.blocks[0].dtype, self.states[0][group.blocks[0].x])
        if not ideal <= 64 * resolution:
            raise InputError(
                f"The blocks {where} overflow or lose all precision in {group.blocks[0].dtype} (error "
                f"{ideal:.2g}): give other measuring inputs, or exclude these blocks."
            )
        if not rounding <= 64 * resolution:
            raise VerificationError(
                f"The blocks {where} were not understood: what the runtime computes differs from the matched "
                f"FFNs by {rounding:.2g}; please report this model, and exclude these blocks for now."
            )
        allowed = max(2.0, 1.25 * math.sqrt(len(group.blocks)))
        if not error <= allowed * max(rounding, resolution / 8):
            raise VerificationError(
                f"The wide FFN of {where} differs from the parallel sum by {error:.2g}, more than "
                f"{allowed:.1f} times the rounding error of {rounding:.2g}: nothing was written; exclude "
                "these blocks for now."
            )

    def compare(self, fused: Fused, budget: Budget) -> EndToEnd | None:
        """The fused model against the original, end to end."""
        before = self.front.outputs(None, self.hidden_size)
        after = self.front.outputs(fused, self.hidden_size)
        if before is None or after is None or (budget.max_kl is not None and not before[1]):
            if budget.max_kl is not None:
                raise InputError(
                    "max_kl needs a model that returns logits, and none of its outputs looks like them."
                )
            return None
        if any(
            bool((one.isfinite() & ~other.isfinite()).any())
            for one, other in zip(before[2], after[2], strict=True)
        ):
            raise VerificationError("The fused model gives NaN or infinity where the original does not.")
        return end_to_end(before[0], before[2], after[2], logits=before[1])


def _resolution(dtype: str, value: torch.Tensor) -> float:
    """The relative spacing of numbers in a product of `dtype`, TF32 where torch is told to use it."""
    tf32 = dtype == "float32" and value.is_cuda and torch.get_float32_matmul_precision() != "highest"
    return 2.0**-10 if tf32 else torch.finfo(getattr(torch, dtype)).eps


def _some_rows(x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A choice of at most `_TOKENS` tokens of [..., hidden], spread evenly: float64 is slow."""
    count = x.numel() // x.shape[-1]
    index = torch.linspace(0, count - 1, min(count, _TOKENS), device=x.device).round().long()
    return lambda value: value.reshape(-1, value.shape[-1])[index]
