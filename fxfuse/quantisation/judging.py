"""What quantising costs: each wide FFN and the whole model, as the runtime computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Generic

import torch

from fxfuse.budget import Budget
from fxfuse.errors import VerificationError
from fxfuse.frontends.protocol import FrontEnd, Fused
from fxfuse.judge import compare_outputs
from fxfuse.naming import span
from fxfuse.numerics import end_to_end, group_error, is_finite, relative_error
from fxfuse.passes.chains import find_chains
from fxfuse.passes.records import Block, Miss
from fxfuse.quantisation.records import GroupQuantisation, Quantisation
from fxfuse.report import Report

__all__ = ["QuantisedJudge", "decline", "kept_notes", "over_budget", "settle"]


class QuantisedJudge(Generic[Fused]):
    """Holds a quantised model against the fused one and the original, on the front end's samples.

    `names` are the blocks of the groups that `fused` holds, in its order; it may be changed afterwards.
    """

    def __init__(
        self,
        front: FrontEnd[Fused],
        fused: Fused,
        names: Sequence[tuple[str, ...]],
        hidden_size: int,
        budget: Budget,
    ) -> None:
        self._front, self._budget, self._hidden_size = front, budget, hidden_size
        chains = find_chains(front.view, requantize=budget.requantize).chains
        known = {block.name: block for chain in chains for block in chain.blocks}
        self._groups: list[tuple[Block, Block]] = [(known[own[0]], known[own[-1]]) for own in names]
        self._names = list(names)
        ends = [value for first, last in self._groups for value in (first.x, last.out)]
        self._states = front.states(ends)
        self._branches = [
            [front.fused_branch(fused, index, state[first.x], sample) for sample, state in self._samples()]
            for index, (first, _) in enumerate(self._groups)
        ]
        self._before = front.outputs(fused, hidden_size)

    def groups(self, quantised: Fused, kept: Sequence[GroupQuantisation] = ()) -> list[GroupQuantisation]:
        """Every group of the quantised model; those in `kept` are float and stand as they are."""
        known = {group.blocks: group for group in kept}
        return [
            known[names] if names in known else self._group(quantised, index, names)
            for index, names in enumerate(self._names)
        ]

    def totals(self, quantised: Fused) -> dict[str, dict[str, Any]]:
        """The quantised model's logits, or its first output, against the fused model's and the original's.

        Raises:
            VerificationError: It gives NaN or infinity where the original does not.
        """
        original = compare_outputs(self._front, quantised, self._hidden_size, self._budget)
        before = self._before
        after = self._front.outputs(quantised, self._hidden_size)
        if original is None or before is None or after is None:
            return {}
        fused = end_to_end(before[0], before[2], after[2], logits=before[1])
        return {"against_fused": asdict(fused), "against_original": asdict(original)}

    def _group(self, quantised: Fused, index: int, names: tuple[str, ...]) -> GroupQuantisation:
        first, last = self._groups[index]
        own = [
            self._front.fused_branch(quantised, index, state[first.x], sample)
            for sample, state in self._samples()
        ]
        if not is_finite(own):
            raise VerificationError(
                f"The quantised wide FFN of {span(names)} gives NaN or infinity: nothing was written; leave "
                "its products float."
            )
        starts = [state[first.x] for _, state in self._samples()]
        ends = [state[last.out] for _, state in self._samples()]
        written = [x.double() + branch.double() for x, branch in zip(starts, own, strict=True)]
        error = relative_error(_rows(own), _rows(self._branches[index]))
        return GroupQuantisation(names, error, group_error(starts, ends, written).sqnr_db)

    def _samples(self) -> list[tuple[int, dict[Any, torch.Tensor]]]:
        return list(enumerate(self._states))


def over_budget(found: Quantisation, budget: Budget) -> str | None:
    """What is lost too much of, in words; None where the budget allows it."""
    kl = found.against_original.get("kl")
    if budget.max_kl is None or kl is None or kl <= budget.max_kl:
        return None
    return (
        f"quantised to {found.kind} the logits' KL of {kl:.3g} nats is over the budget of {budget.max_kl:g}"
    )


def decline(report: Report, reason: str) -> None:
    """Let the report tell that nothing was fused, because of what quantising would cost."""
    report.misses += [Miss(span(group.blocks), reason) for group in report.groups]
    report.groups, report.end_to_end, report.after = [], {}, None


def settle(
    judge: QuantisedJudge[Fused], budget: Budget, again: Callable[[Sequence[GroupQuantisation]], Fused]
) -> list[GroupQuantisation]:
    """Quantise by `again`, which leaves the groups it is given float, until min_sqnr allows every loss.

    What the last call of `again` made is the result.
    """
    kept: list[GroupQuantisation] = []
    while True:
        groups = judge.groups(again(kept), kept)
        poor = [
            replace(group, kept_float=True)
            for group in groups
            if not group.kept_float and budget.min_sqnr is not None and group.sqnr_db < budget.min_sqnr
        ]
        if not poor:
            return groups
        kept += poor


def kept_notes(found: Quantisation, budget: Budget) -> list[str]:
    """A sentence on every group that stayed float."""
    return [
        f"the products of {span(group.blocks)} stay float: as {found.kind} the group keeps "
        f"{group.sqnr_db:.1f} dB, under the budget of {budget.min_sqnr:g} dB"
        for group in found.groups
        if group.kept_float
    ]


def _rows(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([each.reshape(-1, each.shape[-1]) for each in tensors])
