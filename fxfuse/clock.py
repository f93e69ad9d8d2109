"""How long each step takes: a listener to progress that notes the time."""

from __future__ import annotations

import time
from collections.abc import Callable

from fxfuse.progress import Step

__all__ = ["Clock"]


class Clock:
    """Passes steps on to `progress` and adds the seconds that each takes to `phases`, under its words."""

    def __init__(self, phases: dict[str, float], progress: Callable[[str], None]) -> None:
        self._phases = phases
        self._progress = progress
        self._step: str | None = None
        self._started = 0.0

    def __call__(self, step: str) -> None:
        """The step before is over, and `step` begins; a counted one goes on until another thing is done."""
        self.stop()
        self._step, self._started = step.what if isinstance(step, Step) else step, time.perf_counter()
        self._progress(step)

    def stop(self) -> None:
        """The last step is over."""
        if self._step is not None:
            seconds = self._phases.get(self._step, 0.0) + time.perf_counter() - self._started
            self._phases[self._step] = round(seconds, 3)
        self._step = None
