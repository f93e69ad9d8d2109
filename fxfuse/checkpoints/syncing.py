"""A file that is brought to the disk while it is written on, so that a killed run has not far to go back."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Syncing"]

_STEP = 1 << 28
"""Bytes after which the disk is asked again: a killed run loses about twice as many."""


class Syncing:
    """Calls `note(position)` when all before `position` is on the disk; the disk works beside the writing.

    with Syncing(descriptor, note, start) as syncing: syncing.reach(position) after every piece.
    """

    def __init__(self, descriptor: int, note: Callable[[int], None], start: int) -> None:
        self._descriptor, self._note, self._asked = descriptor, note, start
        self._worker = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def reach(self, position: int) -> None:
        """Tell that all before `position` was written.

        Raises:
            OSError: What was written before did not come to the disk.
        """
        if position - self._asked < _STEP:
            return
        self.wait()
        self._asked = position
        self._pending = self._worker.submit(self._bring, position)

    def wait(self) -> None:
        """Wait until what was asked for is done."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Syncing:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown(wait=True)

    def _bring(self, position: int) -> None:
        os.fsync(self._descriptor)
        self._note(position)
