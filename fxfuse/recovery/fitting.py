"""The closed forms on one group: g' and h, each with the penalty that held-out tokens choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from fxfuse.passes.weights import Wide
from fxfuse.progress import Progress, silent, track
from fxfuse.recovery.ffn import WideFfn, rounded
from fxfuse.recovery.inputs import InputMaps
from fxfuse.recovery.judging import Candidate, local_errors
from fxfuse.recovery.records import RecoveryOptions
from fxfuse.recovery.solvers import Blocks, Direct, Gradients, OutputSolver, choose_solver
from fxfuse.recovery.tokens import GroupTokens

__all__ = ["Fitting"]

_WORSE = 2
"""So many penalties in a row without a better one end the search."""


@dataclass(frozen=True)
class Fitting:
    """One group with its data; `dtype` is the type that weights are written in."""

    ffn: WideFfn
    fit: GroupTokens
    held_out: GroupTokens
    options: RecoveryOptions
    dtype: torch.dtype
    progress: Progress = silent

    def candidate(self, name: str, wide: Wide, penalty: float | None = None) -> Candidate:
        """Weights as they would be written, judged on the held-out tokens."""
        wide = rounded(wide, self.dtype)
        return Candidate(name, wide, local_errors(self.ffn, self.held_out, wide), penalty)

    def inputs(self, start: Candidate, wide: Wide) -> Candidate | None:
        """G' on `wide`, the unrounded weights of `start`; None where no penalty gives numbers."""
        maps = InputMaps(self.ffn, self.fit)
        return self._best("g'", lambda penalty: maps.apply(wide, penalty), "fitting input maps")

    def outputs(self, start: Candidate) -> Candidate | None:
        """H on top of `start`; None where no penalty gives numbers."""
        name = "h" if start.name == "naive" else f"{start.name} + h"
        solver = self._solver(start.wide)

        def corrected(penalty: float) -> Wide | None:
            found = solver.solve(penalty)
            if found is None:
                return None
            return replace(start.wide, down=(start.wide.down.double() + found.T).float())

        try:
            return self._best(name, corrected, "fitting down projections")
        finally:
            solver.close()

    @property
    def solver(self) -> str:
        """Which solver h takes."""
        widths = [block.intermediate_size for block in self.fit.blocks]
        return choose_solver(widths, self.options.solver, self.options.memory)

    def _solver(self, wide: Wide) -> OutputSolver:
        given = (self.ffn, self.fit, wide)
        if self.solver == "direct":
            return Direct(*given, self.progress)
        if self.solver == "blocks":
            return Blocks(*given, self.options.sweeps, self.options.memory)
        return Gradients(*given, self.options.iterations)

    def _best(self, name: str, make: Callable[[float], Wide | None], what: str) -> Candidate | None:
        """From the largest penalty down, until smaller ones only do worse."""
        best, worse = None, 0
        for found in self._tried(name, make, what):
            if best is None or found.errors.mean < best.errors.mean:
                best, worse = found, 0
            else:
                worse += 1
            if worse == _WORSE:
                break
        return best

    def _tried(self, name: str, make: Callable[[float], Wide | None], what: str) -> Iterator[Candidate]:
        for penalty in track(sorted(self.options.penalties, reverse=True), what, self.progress):
            wide = make(penalty)
            if wide is None or not all(bool(each.isfinite().all()) for each in wide.tensors().values()):
                continue
            found = self.candidate(name, wide, penalty)
            if math.isfinite(found.errors.mean):
                yield found
