"""SIGTERM and SIGHUP unwind the program as Ctrl-C does, so that no partial file stays behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["Terminated", "terminable"]


class Terminated(KeyboardInterrupt):
    """What a scheduler sends at the end of a job's time."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` for SIGTERM and SIGHUP inside; what was set before is set again at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in _signals()}
    for each in before:
        signal.signal(each, _stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _signals() -> list[int]:
    """Under nohup SIGHUP is ignored and stays so; a handler that C set cannot be put back."""
    there = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    return [each for each in there if signal.getsignal(each) not in (signal.SIG_IGN, None)]


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise Terminated
