"""Measure plans end to end: each set of groups once, on calibration data that are held out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as FolderPath
from typing import TYPE_CHECKING, Any, TypeAlias

from fxfuse.analysis.records import Analysis
from fxfuse.divergence import Divergence
from fxfuse.planning.matching import match_plan
from fxfuse.planning.records import Plan, PlannedGroup
from fxfuse.planning.search import Path
from fxfuse.planning.segments import Segments
from fxfuse.progress import Progress

if TYPE_CHECKING:
    from fxfuse.calibration import Calibration
    from fxfuse.frontends.opening import Model

__all__ = ["Measure", "Meter", "measuring"]

Measure: TypeAlias = Callable[[Sequence[tuple[str, ...]]], Divergence]
"""The divergence of the logits with these groups, of two blocks or more by name, all fused at once.

One that has a method `together` takes several such sets at once, where each by itself would read all weights.
"""


class Meter:
    """Measures paths, each once; `known` holds what came out."""

    def __init__(self, segments: Segments, measure: Measure, progress: Progress) -> None:
        self.segments, self.measure, self.progress = segments, measure, progress
        self.known: dict[Path, Divergence] = {}

    def best(self, paths: Sequence[Path]) -> Path:
        """The path among `paths` that loses least when it is measured; the first of equals."""
        self.know(paths)
        return min(paths, key=self.kl)

    def know(self, paths: Sequence[Path]) -> None:
        """Measure several paths, in one pass where the measure can."""
        new = [path for path in dict.fromkeys(paths) if path not in self.known and self._groups(path)]
        together = getattr(self.measure, "together", None)
        if together is not None and len(new) > 1:
            self.progress(f"measuring {len(new)} plans")
            self.known |= zip(new, together([self._groups(path) for path in new]), strict=True)
        for path in paths:
            self.kl(path)

    def kl(self, path: Path) -> float:
        """What a path loses, in nats; infinity where the fused model gives NaN."""
        if path not in self.known:
            lengths = " | ".join("+".join(map(str, each)) for each in path.lengths)
            self.progress(f"measuring the groups {lengths}")
            groups = self._groups(path)
            self.known[path] = self.measure(groups) if groups else Divergence(0.0, 0.0, 1.0, 0)
        found = self.known[path].kl
        return found if math.isfinite(found) else math.inf

    def _groups(self, path: Path) -> list[tuple[str, ...]]:
        return [self.segments.names(each) for each in self.segments.groups(path)]


@contextlib.contextmanager
def measuring(
    analysis: Analysis, model: Model, data: Any, progress: Progress, memory: int, **reading: Any
) -> Iterator[Measure]:
    """A `Measure` on a model, in any form that `analyze` takes, and calibration data.

    Raises:
        InputError: The model is not that of the analysis, or model or data cannot be used.
    """
    from fxfuse.analysis.measure import Measurements
    from fxfuse.calibration import Calibration
    from fxfuse.frontends.opening import is_checkpoint, open_model

    progress("reading the data")
    calibration = Calibration.of(data, **reading)
    progress("reading the model")
    if is_checkpoint(model):
        yield _from_disk(analysis, FolderPath(model), calibration, memory, progress)  # type: ignore[arg-type]
        return
    with (
        open_model(model, calibration) as front,
        Measurements(front, calibration, memory=memory, progress=progress) as measurements,
    ):

        def measure(groups: Sequence[tuple[str, ...]]) -> Divergence:
            plan = Plan(analysis.id, tuple(map(PlannedGroup, groups)))
            return measurements.groups_kl(match_plan(plan, measurements.found))

        match_plan(Plan(analysis.id, ()), measurements.found)  # told before anything is measured
        yield measure


def _from_disk(
    analysis: Analysis, folder: FolderPath, calibration: Calibration, memory: int, progress: Progress
) -> Measure:
    """A measure on a checkpoint, of which one block at a time is in memory."""
    from fxfuse.checkpoints.opening import open_checkpoint
    from fxfuse.streaming.api import open_model
    from fxfuse.streaming.plans import PlanMeasure

    model = open_model(open_checkpoint(folder), calibration)
    return PlanMeasure(model, analysis, calibration, memory, progress)
