r"""Recovery of a checkpoint: the closed forms of `fxfuse.recovery`, group by group from disk.

    to a group's end       the sequential stream, and the fused one before the group     every layer read once
    fit                    g' and h on one group's weights, judged on held-out tokens
    race                   what won, and the naive form, from there to the logits        once for each group

What is kept is written as tensors of the source's own names that stand in the place of its own: the blocks of
a group with their corrected weights and norms without gain. All that follows, layout, writing, splitting, is
then what it would be without recovery. Memory holds one group's weights in float32, a few times over: once
for each form that is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from fxfuse.calibration import Calibration
from fxfuse.calibration.store import Activations
from fxfuse.checkpoints.records import Checkpoint, Group
from fxfuse.passes.elementwise import constant
from fxfuse.progress import Progress, silent
from fxfuse.recovery.checks import check_data, data_notes
from fxfuse.recovery.deciding import decide
from fxfuse.recovery.ffn import WideFfn
from fxfuse.recovery.fitting import Fitting
from fxfuse.recovery.group import candidates, winners
from fxfuse.recovery.judging import Candidate
from fxfuse.recovery.records import GroupRecovery, Recovered, RecoveryOptions
from fxfuse.recovery.recover import group_report, keep_only_gains, unrounded
from fxfuse.recovery.tokens import GroupTokens
from fxfuse.sessions import Provider
from fxfuse.streaming.api import open_model, places_of
from fxfuse.streaming.corrected import corrected_tensors
from fxfuse.streaming.frontier import Frontier, PartStates, block_key
from fxfuse.streaming.group_graph import group_graph
from fxfuse.streaming.model import DiskModel
from fxfuse.streaming.sweep import ticks

__all__ = ["RecoveredCheckpoint", "recover_checkpoint"]


@dataclass(frozen=True)
class RecoveredCheckpoint:
    """The checkpoint with corrected weights in the place of its own, and what was tried and kept."""

    checkpoint: Checkpoint
    found: Recovered


@torch.no_grad()
def recover_checkpoint(
    checkpoint: Checkpoint,
    groups: Sequence[Group],
    calibration: Calibration,
    folder: Path,
    options: RecoveryOptions | str = "fit",
    *,
    provider: Provider = "auto",
    progress: Progress = silent,
) -> RecoveredCheckpoint:
    """Fit the wide weights of `groups` so that the fused model comes closer to the sequential one.

    Args:
        checkpoint: What is to be fused.
        groups: Layers whose FFNs become one each.
        calibration: Data: a part to fit on, and one held out, by which everything is chosen.
        folder: Where corrected weights are kept, until what is made of the result has been written.
        options: "fit", "distill" or `RecoveryOptions`.
        provider: "cuda", "cpu", or "auto" for the first of them that is there.
        progress: Told of every step.

    Returns:
        The same checkpoint, of which some tensors lie in `folder`; `found.wides` are all None.

    Raises:
        InputError: The data do not fit the model, hold nothing to judge by, or it gives NaN on them.
    """
    chosen = RecoveryOptions.of(options) or RecoveryOptions()
    check_data(calibration)
    model = open_model(checkpoint, calibration, provider)
    ffns = {each.layer: at for at, each in enumerate(model.updates) if each.kind == "ffn"}
    numbers = [[ffns[layer] for layer in group] for group in groups]
    with Activations(chosen.activations) as store:
        places = places_of(calibration, None, held_out=True)
        tell = ticks(_reads(model, numbers), "recovering block by block", progress)
        run = _Run(
            model, numbers, calibration, chosen, Frontier(model, places, store, tell), folder, progress
        )
        found = run.recover()
        found.notes += [store.note] if store.note else []
    files = run.files if any(group.won for group in found.groups) else []
    tensors = checkpoint.tensors.replaced(files) if files else checkpoint.tensors
    return RecoveredCheckpoint(replace(checkpoint, tensors=tensors), found)


class _Run:
    """One recovery; `groups` are places among the updates, in order."""

    def __init__(
        self,
        model: DiskModel,
        groups: Sequence[Sequence[int]],
        calibration: Calibration,
        options: RecoveryOptions,
        frontier: Frontier,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.model, self.groups, self.calibration = model, groups, calibration
        self.options, self.frontier, self.folder, self.progress = options, frontier, folder, progress
        self.files: list[Path] = []

    def recover(self) -> Recovered:
        """All groups, each on what those before it give."""
        found = Recovered([], [])
        for index, numbers in enumerate(self.groups):
            found.wides.append(None)
            found.groups.append(self._group(numbers, found, last=index + 1 == len(self.groups)))
        keep_only_gains(found)
        found.notes += data_notes(self.calibration, found.groups)
        return found

    def _group(self, numbers: Sequence[int], found: Recovered, *, last: bool) -> GroupRecovery:
        self.frontier.go_to(numbers[0])
        self.frontier.pass_group(numbers)
        stream = self.frontier.streams.get("y", self.frontier.judged[0])
        with group_graph(self.model, numbers, stream) as graph:
            front, blocks = graph.front, graph.blocks
            keys = {block.x: block_key(number) for block, number in zip(blocks, numbers, strict=True)}
            keys |= {blocks[-1].out: "x"}
            fit, held_out = (
                GroupTokens(PartStates(self.frontier, part, keys), blocks, "y")
                for part in ("fit", "held_out")
            )
            ffn = WideFfn(front.view, blocks[0])
            dtype = constant(front.view, blocks[0].ffn.down.weight, None).dtype
            fitting = Fitting(ffn, fit, held_out, self.options, dtype, self.progress)
            tried = candidates(fitting, unrounded(front, blocks))
        better = winners(tried)
        race = [("y", partial(ffn.apply, each.wide)) for each in (tried[0], *better)]
        race += [("z", partial(ffn.apply, tried[0].wide))] if last else []
        *measured, plain = self.frontier.race(race) if last else (*self.frontier.race(race), None)
        kls = {id(each): kl for each, kl in zip((tried[0], *better), measured, strict=True)}
        decision = decide(tried[0], better, lambda candidate: kls[id(candidate)])
        self._write(numbers, decision.kept, tried[0])
        report = group_report(blocks, self.calibration, fitting, tried, decision)
        if last:
            found.kl_before, found.kl_after = plain, decision.after
        else:
            kept = partial(ffn.apply, decision.kept.wide)
            self.frontier.fuse(kept, partial(ffn.apply, tried[0].wide), numbers)
        return report

    def _write(self, numbers: Sequence[int], kept: Candidate, naive: Candidate) -> None:
        if kept is not naive:
            path = self.folder / f"recovered-{numbers[0]}.safetensors"
            layers = [self.model.updates[number].layer for number in numbers]
            corrected_tensors(self.model.checkpoint, layers, kept.wide, path)
            self.files.append(path)


def _reads(model: DiskModel, groups: Sequence[Sequence[int]]) -> int:
    """How many updates are read in all."""
    ends = [numbers[-1] + 1 for numbers in groups]
    return max(ends, default=0) + sum(len(model.updates) - end for end in ends)
