r"""The KL of whole plans: all groups of each fused at once, several plans in one pass over the files.

x ------------------------------------------------> logits
   \-- plan 0: x_a + sum of f_i(x_a), ... ---------> logits     a plan leaves x where its first group begins
       \-- plan 1 ---------------------------------> logits
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fxfuse.analysis.changes import add
from fxfuse.analysis.records import Analysis
from fxfuse.calibration import Calibration
from fxfuse.calibration.store import Activations
from fxfuse.checkpoints.plans import planned_groups
from fxfuse.divergence import Divergence, DivergenceMeter
from fxfuse.planning.records import Plan, PlannedGroup
from fxfuse.progress import Progress
from fxfuse.streaming.model import Branch, DiskModel
from fxfuse.streaming.streams import Streams, compare
from fxfuse.streaming.sweep import Place, sweep, ticks, together

__all__ = ["PlanMeasure"]

Names = Sequence[tuple[str, ...]]


class PlanMeasure:
    """Measures sets of groups on the part held out; groups are blocks by the names that `analysis` has.

    Raises:
        InputError: The checkpoint is not that of the analysis.
    """

    def __init__(
        self, model: DiskModel, analysis: Analysis, calibration: Calibration, memory: int, progress: Progress
    ) -> None:
        self.model, self.analysis, self.memory, self.progress = model, analysis, memory, progress
        self.places = [Place(at, "held_out", batch) for at, batch in enumerate(calibration.held_out)]
        for chain in analysis.chains[:1]:
            self._numbers([chain.blocks])  # another model is told before anything is measured

    def __call__(self, groups: Names) -> Divergence:
        """The KL with these groups, all fused at once."""
        return self.together([groups])[0]

    def together(self, plans: Sequence[Names]) -> list[Divergence]:
        """The KL of each plan, from one pass."""
        with Activations(self.memory) as store:
            visitor = _Plans(Streams(store, self.model.device), [self._numbers(groups) for groups in plans])
            passes = together(self.model, self.places, lambda _: 1 + 4 * len(plans), store)
            steps = len(passes) * len(self.model.updates)
            tell = ticks(steps, "measuring plans block by block", self.progress)
            for part in passes:
                sweep(self.model, part, visitor, tell=tell)
                visitor.forget()
            return [meter.result() for meter in visitor.meters]

    def _numbers(self, groups: Names) -> list[list[int]]:
        """The groups as places among the updates."""
        plan = Plan(self.analysis.id, tuple(map(PlannedGroup, groups)))
        ffns = {each.layer: at for at, each in enumerate(self.model.updates) if each.kind == "ffn"}
        return [[ffns[layer] for layer in group] for group in planned_groups(self.model.checkpoint, plan)]


@dataclass(frozen=True)
class _Roles:
    """What an update is in one plan."""

    begins: bool
    ends: bool


class _Plans:
    """Takes every plan's stream through a pass."""

    def __init__(self, streams: Streams, plans: Sequence[Sequence[Sequence[int]]]) -> None:
        self.streams = streams
        self.meters = [DivergenceMeter() for _ in plans]
        self.first = [min(number for group in plan for number in group) for plan in plans]
        self.roles: list[Mapping[int, _Roles]] = [
            {number: _Roles(number == group[0], number == group[-1]) for group in plan for number in group}
            for plan in plans
        ]

    def begin(self, place: Place, x: torch.Tensor) -> None:
        """See `Visitor`."""
        self.streams.put("x", place, x)

    def update(self, number: int, place: Place, branch: Branch) -> None:
        """See `Visitor`."""
        x = self.streams.get("x", place)
        for plan, roles in enumerate(self.roles):
            if number == self.first[plan]:
                self.streams.put(("plan", plan), place, x)
            if number in roles:
                self._fuse(plan, place, branch, roles[number])
            elif number > self.first[plan]:
                y = self.streams.get(("plan", plan), place)
                self.streams.put(("plan", plan), place, y + branch(y))
        self.streams.put("x", place, x + branch(x))

    def after(self, number: int) -> None:
        """See `Visitor`."""

    def end(self, place: Place, logits: Branch) -> None:
        """See `Visitor`."""
        meters: dict[Hashable, DivergenceMeter] = {("plan", at): each for at, each in enumerate(self.meters)}
        compare(self.streams, place, logits, meters)

    def forget(self) -> None:
        """A pass is over."""
        for key in ("x", *((role, at) for role in ("plan", "sum") for at in range(len(self.meters)))):
            self.streams.drop(key)

    def _fuse(self, plan: int, place: Place, branch: Branch, role: _Roles) -> None:
        """Add a block's branch on the stream before its group."""
        start = self.streams.get(("plan", plan), place)
        added = branch(start)
        total = added.to(torch.promote_types(added.dtype, torch.float32))
        if not role.begins:
            total = self.streams.get(("sum", plan), place) + total
        if role.ends:
            self.streams.put(("plan", plan), place, add(start, total))
        else:
            self.streams.put(("sum", plan), place, total)
