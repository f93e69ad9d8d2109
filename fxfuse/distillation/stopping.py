"""Ctrl-C, SIGTERM and SIGHUP while a model learns: heeded between two steps, where all fits together."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from fxfuse.signals import Terminated

__all__ = ["Stopping"]


class Stopping:
    """A context manager; the first signal inside waits for `safe_point`, a second one does not.

    `asked` says that a signal was heeded at a safe point.
    """

    def __init__(self, active: bool) -> None:
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, object] = {}
        self._signal: int | None = None
        self.asked = False

    def __enter__(self) -> Stopping:
        names = ("SIGINT", "SIGTERM", "SIGHUP") if self._active else ()
        for number in [getattr(signal, name) for name in names if hasattr(signal, name)]:
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):  # under nohup SIGHUP is ignored, and stays so
                self._before[number] = before
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]

    def safe_point(self) -> None:
        """Raise what a signal asked for.

        Raises:
            KeyboardInterrupt: After Ctrl-C; `Terminated`, which is one too, after the others.
        """
        if self._signal is not None:
            self.asked = True
            raise self._error()

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:
            raise self._error()
        self._signal = number

    def _error(self) -> KeyboardInterrupt:
        return KeyboardInterrupt() if self._signal == signal.SIGINT else Terminated()
