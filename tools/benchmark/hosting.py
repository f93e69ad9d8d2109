"""What runs in a contestant's process: it opens the contestant, checks its answer, and is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxfuse.timing.workers import time_round
from tools.benchmark.cases import Settings, dtype_of
from tools.benchmark.contestants import Contestant, open_contestant
from tools.benchmark.files import read_reference

__all__ = ["FACTORY", "Host"]

FACTORY = "tools.benchmark.hosting:Host"


class Host:
    """A contestant inside its process; the methods are the requests that it answers."""

    def __init__(self, name: str, model: str, folder: Path, settings: Settings) -> None:
        self._name, self._model, self._folder, self._settings = name, model, folder, settings
        self._contestant: Contestant

    def open(self) -> None:
        """Build the model."""
        self._contestant = open_contestant(self._name, self._model, self._folder, self._settings)

    def prepare(self, tokens: int) -> tuple[float, list[int]]:
        """Compile, check the answer and warm up; returns its relative error and the groups that are fused."""
        dtype = dtype_of(self._name, self._settings.device)
        reference = read_reference(self._folder, tokens, dtype)
        self._contestant.prepare(reference.input)
        fused = "fxfuse" in self._name or "fused" in self._name
        error = reference.check(self._contestant.answer(), fused=fused)
        time_round(self.call, self.wait, self._settings.seconds)
        return error, self._contestant.groups

    def call(self) -> Any:
        """Run once."""
        return self._contestant.call()

    def wait(self) -> None:
        """Return when the device is idle."""
        self._contestant.wait()
