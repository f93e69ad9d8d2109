"""A process for each contestant: it builds its model once, then sleeps until it is told to run a round.

In one process contestants would share the cache and the memory's good places, and the first would win.
The process is a plain Python that imports what its factory needs: nothing of the caller's script runs in it.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Protocol

__all__ = ["ENDED", "LEAST_CALLS", "Failure", "Subject", "Worker", "spawn", "time_round"]

LEAST_CALLS = 5
PATIENCE = 5.0  # seconds that an idle process has to end by itself
ENDED = "its process ended"
spawn = multiprocessing.get_context("spawn")

_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer);"
    "from fxfuse.timing.serving import serve; serve()"
)


class Failure(Exception):
    """What went wrong in a contestant's process, in one line."""


class Subject(Protocol):
    """What a factory makes: its other methods are requests that a worker may ask for as well."""

    def call(self) -> Any:
        """Run once; on a GPU the work may still be under way on return."""

    def wait(self) -> None:
        """Return when the device is idle."""


class Worker:
    """The handle of a contestant's process; leave the `with` block to end it.

    Args:
        factory: "module:function", called in the process with `arguments`; what it makes is a `Subject`.
        arguments: Anything that can be pickled.
        quiet: What the process writes to stderr is dropped.

    Raises:
        Failure: No process can be started.
    """

    def __init__(self, factory: str, *arguments: Any, quiet: bool = False) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if quiet else None,
            )
        except (OSError, TypeError) as error:
            raise Failure(f"no process can be started ({error})") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        with contextlib.suppress(OSError):  # it has ended: the first request says so
            self._send([each for each in sys.path if isinstance(each, str)])
            self._send((factory, arguments))

    def ask(self, request: str, *arguments: Any) -> Any:
        """Call a method of the contestant and wait for what it returns; "round" is `time_round` of it.

        Raises:
            Failure: The request failed or the process ended.
        """
        self.begin(request, *arguments)
        return self.finish()

    def begin(self, request: str, *arguments: Any) -> None:
        """Send a request, whose answer `finish` waits for."""
        with contextlib.suppress(OSError, ValueError):  # it has ended: the answer says so
            self._send((request, arguments))

    def finish(self) -> Any:
        """The answer to the request that `begin` sent.

        Raises:
            Failure: The request failed or the process ended.
        """
        try:
            good, answer = pickle.load(self._answers)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            self.dismiss()
            code = self._process.wait()
            raise Failure(f"{ENDED} with exit code {code}") from None
        if not good:
            raise Failure(answer)
        return answer

    def dismiss(self) -> None:
        """Let the process end, without waiting for it."""
        with contextlib.suppress(OSError):  # it has ended already
            self._requests.close()

    def _send(self, what: Any) -> None:
        pickle.dump(what, self._requests)
        self._requests.flush()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """End the process, and wait until it has."""
        self.dismiss()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()
        self._answers.close()


def time_round(
    call: Callable[[], Any], wait: Callable[[], None], seconds: float, least: int = LEAST_CALLS
) -> list[float]:
    """Times of single calls in seconds, for `seconds` and at least `least`; a fifth of that warms up before.

    The warm-up brings back into the cache what the other processes pushed out.
    """
    gc.collect()
    gc.disable()
    try:
        _repeat(call, wait, seconds / 5, 1)
        return _repeat(call, wait, seconds, least)
    finally:
        gc.enable()


def _repeat(call: Callable[[], Any], wait: Callable[[], None], seconds: float, least: int) -> list[float]:
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return times
