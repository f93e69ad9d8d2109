"""Measure fusion loss before anything is written, and hold what was written against float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic

import torch

from fxfuse.budget import Budget
from fxfuse.errors import InputError, VerificationError
from fxfuse.frontends.protocol import FrontEnd, Fused
from fxfuse.meaning import Meaning
from fxfuse.naming import span
from fxfuse.numerics import EndToEnd, GroupError, end_to_end, group_error, is_finite, relative_error
from fxfuse.passes.records import Block
from fxfuse.passes.view import View, root
from fxfuse.passes.weights import Wide
from fxfuse.planning.greedy import Group
from fxfuse.recovery.records import Recovered
from fxfuse.report import GroupReport
from fxfuse.sums import Sums

__all__ = ["Judge", "compare_outputs"]

_TOKENS = 256
"""Tokens on which the rewrite error is measured, where products are small enough; fewer of wide ones."""
_LEAST_TOKENS = 32
_WORK = 1 << 33
"""Products of two numbers that one float64 reference may take."""
_COARSEST = 0.5
"""The greatest error that rounding to 8 bits may make; above it nothing of the signal is left to judge by."""


class Judge(Generic[Fused]):
    """Measures groups on the states of the sequential model."""

    def __init__(self, front: FrontEnd[Fused], blocks: Sequence[Block]) -> None:
        self.front = front
        self._sums = Sums(front.branch)
        self.hidden_size = blocks[0].hidden_size
        self.states = front.states([value for block in blocks for value in (block.x, block.out)])
        for block in blocks:
            if not is_finite([state[value] for state in self.states for value in (block.x, block.out)]):
                raise InputError(
                    f"The original model gives NaN or infinity at {block.name}: check its weights or give "
                    "other measuring inputs."
                )
            for state in self.states:
                before, after = state[block.x].shape, state[block.out].shape
                if before != after:  # a reshape inside, and an operand that was broadcast
                    raise VerificationError(
                        f"The block {block.name} was not understood: it makes {list(after)} of {list(before)}"
                        "; please report this model, and exclude this block for now."
                    )

    def loss(self, blocks: Sequence[Block]) -> GroupError:
        """The fusion loss of `blocks` as one group, before anything is written."""
        first, last = blocks[0], blocks[-1]
        fused = []
        for sample, state in enumerate(self.states):
            x = state[first.x]
            fused.append(x.double() + self._sums.of(blocks, x, sample))
        return group_error([s[first.x] for s in self.states], [s[last.out] for s in self.states], fused)

    def verify_all(
        self, fused: Fused, groups: Sequence[Group], recovered: Recovered | None = None
    ) -> list[GroupReport]:
        """Reports on all groups; after a recovery, losses are of the streams that the fused model brings."""
        if recovered is None:
            return [self.verify(fused, index, group) for index, group in enumerate(groups)]
        found = []
        streams = self._streams(fused, groups)
        told = zip(groups, recovered.wides, recovered.groups, streams, strict=True)
        for index, (group, wide, own, starts) in enumerate(told):
            report = self.verify(fused, index, group, wide)
            loss = self.written_loss(fused, index, group, starts)
            found.append(
                replace(
                    report, sqnr_db=loss.sqnr_db, cosine=loss.cosine, relative_error=loss.relative_error,
                    recovery=own,
                )
            )  # fmt: skip
        return found

    def verify(self, fused: Fused, index: int, group: Group, corrected: Wide | None = None) -> GroupReport:
        """Hold the wide FFN against what it should compute in float64, on some of the tokens.

        That is the hand-written parallel sum, or the function of the `corrected` weights where there are any.
        """
        first, meaning = group.blocks[0], Meaning(self.front.view, group.blocks, corrected)
        dtype = getattr(torch, _coarsest(self.front.view, first))
        wide, plain, exact, typed, own = [], [], [], [], []
        finite = True
        for sample, state in enumerate(self.states):
            x = state[first.x]
            rows = _some_rows(x, _TOKENS if meaning.rounds else _tokens(group.blocks))
            whole = self.front.fused_branch(fused, index, x, sample)
            finite = finite and is_finite([whole])
            wide.append(rows(whole))
            plain.append(rows(self._sums.of(group.blocks, x, sample)))
            exact.append(meaning.written(rows(x), torch.float64))
            typed.append(meaning.computed(x, rows, dtype))
            changed = meaning.requantised or meaning.recovered
            own.append(meaning.unfused(rows(x)) if changed else exact[-1])
        target = torch.cat(exact)
        error = relative_error(torch.cat(wide), target)
        ideal = relative_error(torch.cat(typed), target)
        rounding = max(ideal, relative_error(torch.cat(plain), torch.cat(own)))
        self._check(group, error if finite else math.inf, rounding, ideal, coarse=meaning.rounds)
        if meaning.rounds and meaning.requantised is None:
            error = relative_error(torch.cat(wide), torch.cat(plain))
            self._check_moved(group, error, ideal)
        loss = self.written_loss(fused, index, group) if meaning.requantised is not None else group.error
        return GroupReport(
            group.names, sum(block.intermediate_size for block in group.blocks), error,
            loss.sqnr_db, loss.cosine, loss.relative_error, rounding, meaning.done, meaning.requantised,
        )  # fmt: skip

    def written_loss(
        self, fused: Fused, index: int, group: Group, starts: Sequence[torch.Tensor] | None = None
    ) -> GroupError:
        """The loss of a group as it was written, which differs where weights were changed.

        `starts` are the streams before it, one for each sample, where they are not the sequential model's.
        """
        first, last = group.blocks[0], group.blocks[-1]
        ends = [
            x.double() + self.front.fused_branch(fused, index, x, sample).double()
            for sample, x in enumerate(starts or [state[first.x] for state in self.states])
        ]
        return group_error([s[first.x] for s in self.states], [s[last.out] for s in self.states], ends)

    def _streams(self, fused: Fused, groups: Sequence[Group]) -> list[list[torch.Tensor]]:
        """For every group, the streams before it with all groups before it fused, one for each sample."""
        found = [[state[groups[0].blocks[0].x] for state in self.states]]
        for index, (group, following) in enumerate(zip(groups, groups[1:], strict=False)):
            last, wanted = group.blocks[-1].out, following.blocks[0].x
            ends = [
                (x + self.front.fused_branch(fused, index, x, sample)).to(x.dtype)
                for sample, x in enumerate(found[-1])
            ]
            if root(self.front.view, wanted) != last:
                ends = [self.front.onward(x, last, wanted, sample) for sample, x in enumerate(ends)]
            found.append(ends)
        return found

    def _check_moved(self, group: Group, difference: float, ideal: float) -> None:
        """Integers that were only moved give the same sums, but for the order of adding.

        An input that differs in its last bit may round to the next of 255 steps; one in a thousand that does
        makes 3 percent of what rounding all of them makes.
        """
        resolution = self._resolution(group)
        bound = max(64 * resolution, 0.03 * ideal)
        if not difference <= bound:
            raise VerificationError(
                f"The wide FFN of {span(group.names)} differs from the unfused ones of the same integers by "
                f"{difference:.2g}, more than {bound:.2g}: nothing was written; exclude these blocks for now."
            )

    def _check(self, group: Group, error: float, rounding: float, ideal: float, *, coarse: bool) -> None:
        """Rounding explains at most twice the unfused form's error; anything above is a bug.

        Products of one or two tokens are summed one term after the other, so that their rounding grows with
        the root of the width: a group of n blocks is allowed 1.25 sqrt(n) where that is more than 2.

        `coarse`: what products read may be rounded to 8 bits. `ideal` is then the error of just that on these
        very inputs, and the runtime, which may choose its blocks otherwise, is allowed twice as much.
        """
        where = span(group.names)
        resolution = self._resolution(group)
        limit = max(64 * resolution, 2 * ideal) if coarse else 64 * resolution
        if not ideal <= (_COARSEST if coarse else limit):
            raise InputError(
                f"The blocks {where} overflow or lose all precision in {group.blocks[0].dtype} (error "
                f"{ideal:.2g}): give other measuring inputs, or exclude these blocks."
            )
        if not rounding <= limit:
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

    def _resolution(self, group: Group) -> float:
        first = group.blocks[0]
        return _resolution(_coarsest(self.front.view, first), self.states[0][first.x])

    def compare(self, fused: Fused, budget: Budget) -> EndToEnd | None:
        """The fused model against the original, end to end."""
        return compare_outputs(self.front, fused, self.hidden_size, budget)


def compare_outputs(
    front: FrontEnd[Fused], fused: Fused, hidden_size: int, budget: Budget
) -> EndToEnd | None:
    """A fused model against the original, end to end; None where no output can be compared."""
    before = front.outputs(None, hidden_size)
    after = front.outputs(fused, hidden_size)
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


def _coarsest(view: View, block: Block) -> str:
    """The type with the fewest digits among those that a block's values pass through."""
    names = [block.dtype, *map(view.dtype, (block.norm.output, block.branch, *block.interior))]
    known = [name for name in names if name in ("float16", "bfloat16", "float32", "float64")]
    return max(known, key=lambda name: torch.finfo(getattr(torch, name)).eps)


def _resolution(dtype: str, value: torch.Tensor) -> float:
    """The relative spacing of numbers in a product of `dtype`, TF32 where torch is told to use it."""
    tf32 = dtype == "float32" and value.is_cuda and torch.get_float32_matmul_precision() != "highest"
    return 2.0**-10 if tf32 else torch.finfo(getattr(torch, dtype)).eps


def _tokens(blocks: Sequence[Block]) -> int:
    """How many tokens are enough for these blocks: the wider they are, the more one token says."""
    weights = sum(3 * block.hidden_size * block.intermediate_size for block in blocks)
    return max(_LEAST_TOKENS, min(_TOKENS, _WORK // weights))


def _some_rows(x: torch.Tensor, most: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A choice of at most `most` tokens of [..., hidden], spread evenly: float64 is slow."""
    count = x.numel() // x.shape[-1]
    index = torch.linspace(0, count - 1, min(count, most), device=x.device).round().long()
    return lambda value: value.reshape(-1, value.shape[-1])[index]
