"""Correct the weights of fused groups on calibration data, in the order of the graph.

    group k reads x^, which the fused groups before it give;  its target is  x_b(sequential) - x^
    kept is what wins on held-out tokens: first by its local error, then by the KL of the logits

No shape changes, nothing is trained end to end, and no labels are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fxfuse.analysis.states import States, slices
from fxfuse.calibration import Activations, Calibration
from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch, Runnable
from fxfuse.passes.elementwise import constant
from fxfuse.passes.records import Block, Value
from fxfuse.passes.weights import Wide, widen
from fxfuse.progress import Progress, silent
from fxfuse.recovery.checks import check_data, check_groups, data_notes, in_graph_order
from fxfuse.recovery.deciding import Decision, Judgement, total_kl
from fxfuse.recovery.ffn import WideFfn
from fxfuse.recovery.fitting import Fitting
from fxfuse.recovery.group import as_trial, candidates, winners
from fxfuse.recovery.judging import Candidate
from fxfuse.recovery.records import GroupRecovery, Recovered, RecoveryOptions
from fxfuse.recovery.streams import Stream
from fxfuse.recovery.tokens import GroupTokens

__all__ = ["group_report", "keep_only_gains", "recover", "unrounded"]

Group = Sequence[Block]


@torch.no_grad()
def recover(
    front: Runnable,
    groups: Sequence[Group],
    calibration: Calibration,
    options: RecoveryOptions | str = "fit",
    progress: Progress = silent,
) -> Recovered:
    """Fit the wide weights of `groups` so that the fused model comes closer to the sequential one.

    Args:
        front: The model.
        groups: Consecutive blocks that become one wide FFN each.
        calibration: Data: a part to fit on, and one held out, by which everything is chosen.
        options: "fit", "distill" or `RecoveryOptions`.
        progress: Told of every step.

    Returns:
        The weights to write, None for each group that stays naive, and what was tried.

    Raises:
        InputError: A group is quantised, there are no held-out data, or the model gives NaN on the data.
    """
    chosen = RecoveryOptions.of(options) or RecoveryOptions()
    check_groups(front.view, groups)
    check_data(calibration)
    order = in_graph_order(front.view, groups)
    with Activations(chosen.activations) as store:
        ordered = [groups[place] for place in order]
        found = _Run(front, ordered, calibration, chosen, store, progress).recover()
        found.notes += [store.note] if store.note else []
    places = sorted(range(len(order)), key=order.__getitem__)
    found.wides = [found.wides[place] for place in places]
    found.groups = [found.groups[place] for place in places]
    return found


class _Run:
    """One recovery; groups are in the graph's order."""

    def __init__(
        self,
        front: Runnable,
        groups: Sequence[Group],
        calibration: Calibration,
        options: RecoveryOptions,
        store: Activations,
        progress: Progress,
    ) -> None:
        self.front, self.groups, self.calibration = front, groups, calibration
        self.options, self.store, self.progress = options, store, progress
        self.logits = _logits(front, calibration)
        self.fit = self._states(calibration.fit, "fit", None)
        self.held_out = self._states(calibration.held_out, "held_out", self.logits)
        self.fitted = Stream(self.fit, groups, "fused")
        self.judged = Stream(self.held_out, groups, "fused")
        self.plain = Stream(self.held_out, groups, "naive")

    def recover(self) -> Recovered:
        """All groups, each on what those before it give."""
        found = Recovered([], [])
        for index in range(len(self.groups)):
            naive, decision, report = self._group(index)
            ffn = WideFfn(self.front.view, self.groups[index][0])
            kept = decision.kept
            found.wides.append(None if kept is naive else kept.wide)
            found.groups.append(report)
            last = index + 1 == len(self.groups)
            if last and self.logits is not None:
                found.kl_before = total_kl(self.plain, index, self.logits, ffn, naive.wide)
                found.kl_after = total_kl(self.judged, index, self.logits, ffn, kept.wide)
                keep_only_gains(found)
            self.fitted.advance(index, ffn, kept.wide)
            self.judged.advance(index, ffn, kept.wide)
            self.plain.advance(index, ffn, naive.wide)
        found.notes += data_notes(self.calibration, found.groups)
        return found

    def _group(self, index: int) -> tuple[Candidate, Decision, GroupRecovery]:
        blocks = self.groups[index]
        ffn = WideFfn(self.front.view, blocks[0])
        fit = GroupTokens(self.fit, blocks, self.fitted.key(index))
        held_out = GroupTokens(self.held_out, blocks, self.judged.key(index))
        dtype = constant(self.front.view, blocks[0].ffn.down.weight, None).dtype
        fitting = Fitting(ffn, fit, held_out, self.options, dtype, self.progress)
        tried = candidates(fitting, unrounded(self.front, blocks))
        judgement = Judgement(ffn, self.judged, index, self.logits, self.progress)
        decision = judgement.decide(tried[0], winners(tried))
        report = group_report(blocks, self.calibration, fitting, tried, decision)
        return tried[0], decision, report

    def _states(self, batches: Sequence[Batch], part: str, logits: Value | None) -> States:
        kept = [value for group in self.groups for value in (*(block.x for block in group), group[-1].out)]
        hidden = self.groups[0][0].hidden_size
        tokens = self.options.activations // (4 * hidden * len(kept))
        return States(
            self.front, slices(batches, max(1, tokens)), self.store, kept, part=part, logits=logits,
            progress=self.progress,
        )  # fmt: skip


def _logits(front: Runnable, calibration: Calibration) -> Value | None:
    try:
        return front.logits(calibration.held_out[0])
    except InputError as error:
        if "logits" not in str(error):
            raise
        return None


def unrounded(front: Runnable, blocks: Group) -> Wide:
    """The naive wide weights, folded in float64 and held in float32."""

    def allocate(rows: int, columns: int, *, dtype: torch.dtype, device: Any) -> torch.Tensor:
        return torch.empty(rows, columns, dtype=torch.float32, device=device)

    return widen(front.view, blocks, allocate).map(torch.Tensor.float)


def group_report(
    blocks: Group, data: Calibration, fitting: Fitting, tried: Sequence[Candidate], decision: Decision
) -> GroupRecovery:
    """What is said of a group on which `tried` was tried, the naive form first."""
    return GroupRecovery(
        tuple(block.name for block in blocks), fitting.options.method, decision.kept.name, decision.reason,
        data.tokens, data.held_out_tokens, sum(block.intermediate_size for block in blocks),
        tried[0].errors.mean, decision.kept.errors.mean, decision.kept.penalty,
        decision.before.kl if decision.before else None, decision.after.kl if decision.after else None,
        fitting.solver, tuple(as_trial(each, tried[0]) for each in tried),
    )  # fmt: skip


def keep_only_gains(found: Recovered) -> None:
    """Where all groups together do not win at the logits, none of them stays corrected."""
    before, after = found.kl_before, found.kl_after
    if before is None or after is None or after.kl < before.kl or not any(each.won for each in found.groups):
        return
    found.notes.append(
        f"no recovery was kept: all groups together gave a KL of {after.kl:.3g} nats on held-out tokens, not "
        f"below the naive {before.kl:.3g}"
    )
    found.wides, found.kl_after = [None] * len(found.wides), before
    found.groups = [_as_naive(group) for group in found.groups]


def _as_naive(group: GroupRecovery) -> GroupRecovery:
    """What is said of a group whose correction was given up."""
    return replace(
        group, kept="naive", reason="all groups together gain nothing at the logits", penalty=None,
        error_after=group.error_before, kl_after=group.kl_before,
    )  # fmt: skip
