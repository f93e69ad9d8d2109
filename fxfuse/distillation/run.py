"""One distillation, step by step: what it has learned, where it stands, and the best of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fxfuse.distillation.held_out import judge
from fxfuse.distillation.learning import Learning
from fxfuse.distillation.shares import Shares
from fxfuse.distillation.stopping import Stopping
from fxfuse.distillation.windows import Windows
from fxfuse.divergence import Divergence
from fxfuse.errors import FxfuseError
from fxfuse.frontends.protocol import Batch
from fxfuse.progress import Progress, Step

__all__ = ["Run"]

MANY_PASSES = 10
"""Passes over the same windows from which more data would serve better."""


class Run:
    """A distillation that can be stopped after any step.

    step: updates that were made. first, end: the held-out divergence before the first and of what is given
    back. best: the learned weights with the least held-out divergence, None for those of the start.
    """

    first: Divergence
    end: Divergence

    def __init__(
        self,
        shares: Shares,
        windows: Windows,
        held_out: Sequence[Batch],
        classes: int,
        stopping: Stopping,
        progress: Progress,
    ) -> None:
        self.shares, self.windows, self.held_out = shares, windows, held_out
        self.stopping, self.progress, self.recipe = stopping, progress, shares.recipe
        self.learning = Learning(shares.student, self.recipe, classes)
        self.step, self.seconds, self.started = 0, 0.0, False
        self.best: dict[str, Tensor] | None = None
        self._best_step = 0
        self._loss = math.nan
        self._threads: list[int] = []

    @property
    def done(self) -> bool:
        """Whether the last step was made."""
        return self.step >= self.recipe.steps

    def start(self, saved: dict[str, Any] | None) -> None:
        """Judge the student as it is, or go on from a checkpoint."""
        self._sitting, self._begun_at = time.monotonic(), 0
        here = [self.shares.count, torch.get_num_threads()]
        if saved is None:
            self.first = self.end = self._judge()
            self._threads = here
        else:
            self._resume(saved)
        self._changed = self._threads != here
        self.started = True

    def advance(self) -> None:
        """Make one step.

        Raises:
            FxfuseError: The loss or the gradient is not finite; the weights are as they were before the step.
        """
        loss, gradients = self.shares.gradients(self.windows.draw(self.step))
        if not math.isfinite(loss) or not self.learning.update(self.step, gradients, self.shares.pool):
            raise FxfuseError(
                f"The loss or its gradient is not finite at step {self.step + 1}, so no model was written: "
                f"lower the learning rate of {self.recipe.peak:g}."
            )
        self._loss = loss if math.isnan(self._loss) else 0.95 * self._loss + 0.05 * loss
        self.step += 1
        self._tell()
        if self.recipe.judge_every and self.step % self.recipe.judge_every == 0 and not self.done:
            self._keep_better()

    def finish(self) -> None:
        """Judge what was learned, and leave the best of it in `best`."""
        self._keep_better()
        self.seconds += time.monotonic() - self._sitting

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, for a checkpoint."""
        return {
            "step": self.step,
            "learning": self.learning.state(),
            "first": asdict(self.first),
            "end": asdict(self.end),
            "best": self.best,
            "best_step": self._best_step,
            "loss": self._loss,
            "seconds": self.seconds + time.monotonic() - self._sitting,
            "threads": self._threads,
        }

    def notes(self) -> list[str]:
        """What a user should know about the result."""
        found = []
        passes = self.recipe.steps / self.windows.per_pass
        if passes > MANY_PASSES:
            found.append(f"The data were gone through {passes:.0f} times: more of them would serve better.")
        if self.best is None:
            found.append("The held-out KL did not fall, so the student is given back as it was.")
        elif self._best_step < self.step:
            found.append(f"The weights are those of step {self._best_step}, where the held-out KL was least.")
        if self._changed:
            found.append(
                "The run was resumed with another number of threads, so its weights differ in rounding from "
                "those of a run in one sitting."
            )
        return found

    def _resume(self, saved: dict[str, Any]) -> None:
        self.step = self._begun_at = saved["step"]
        self.learning.restore(saved["learning"])
        self.first, self.end = (_divergence(saved[name]) for name in ("first", "end"))
        self.best, self._best_step, self._loss = saved["best"], saved["best_step"], saved["loss"]
        self.seconds, self._threads = saved["seconds"], saved["threads"]

    def _judge(self) -> Divergence:
        return judge(self.shares, self.held_out, self.progress, self.stopping.safe_point)

    def _keep_better(self) -> None:
        found = self._judge()
        if found.kl < self.end.kl:
            self.best, self.end, self._best_step = self.learning.values(), found, self.step

    def _tell(self) -> None:
        took = time.monotonic() - self._sitting
        left = took / (self.step - self._begun_at) * (self.recipe.steps - self.step)
        self.progress(Step(f"distilling, KL {self._loss:.4f}", self.step, self.recipe.steps, left))


def _divergence(saved: dict[str, Any]) -> Divergence:
    return Divergence(**{**saved, "windows": tuple(saved["windows"])})
