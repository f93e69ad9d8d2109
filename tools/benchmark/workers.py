"""A process for each contestant: it builds its model once, then sleeps until it is told to run a round.

In one process contestants would share the cache and the memory's good places, and the first would win.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import signal
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tools.benchmark.cases import Settings

if TYPE_CHECKING:
    from tools.benchmark.contestants import Contestant

__all__ = ["Failure", "Worker", "spawn", "time_round"]

LEAST_CALLS = 5
PATIENCE = 5.0  # seconds that an idle process has to end by itself
spawn = multiprocessing.get_context("spawn")


class Failure(Exception):
    """What went wrong in a contestant's process, in one line."""


class Worker:
    """The handle of a contestant's process; leave the `with` block to end it."""

    def __init__(self, name: str, model: str, folder: Path, settings: Settings) -> None:
        self._pipe, other = spawn.Pipe()
        arguments = (other, name, model, folder, settings)
        self._process = spawn.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        other.close()

    def ask(self, *request: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            Failure: The request failed or the process ended.
        """
        try:
            self._pipe.send(request)
            good, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise Failure(f"its process ended with exit code {self._process.exitcode}") from None
        if not good:
            raise Failure(answer)
        return answer

    def dismiss(self) -> None:
        """Let the process end, without waiting for it."""
        self._pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dismiss()
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def time_round(call: Callable[[], Any], wait: Callable[[], None], seconds: float) -> list[float]:
    """Times of single calls in seconds, for `seconds` and at least five; a fifth of that warms up before.

    The warm-up brings back into the cache what the other processes pushed out.
    """
    gc.collect()
    gc.disable()
    try:
        _repeat(call, wait, seconds / 5, 1)
        return _repeat(call, wait, seconds, LEAST_CALLS)
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


def _serve(pipe: Connection, name: str, model: str, folder: Path, settings: Settings) -> None:
    """Answer requests until the pipe closes. The slow import comes first, where all do it at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import tools.benchmark.contestants  # noqa: F401

    host = Host(name, model, folder, settings)
    while True:
        try:
            request, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, getattr(host, request)(*arguments)))
        except Exception as error:  # whatever it is, the parent reports it and goes on
            lines = str(error).strip().splitlines()
            pipe.send((False, f"{type(error).__name__}: {lines[0] if lines else ''}"))


class Host:
    """A contestant inside its process; the methods are the requests that it answers."""

    def __init__(self, name: str, model: str, folder: Path, settings: Settings) -> None:
        self._name, self._model, self._folder, self._settings = name, model, folder, settings
        self._contestant: Contestant

    def open(self) -> None:
        """Build the model."""
        from tools.benchmark.contestants import open_contestant

        self._contestant = open_contestant(self._name, self._model, self._folder, self._settings)

    def prepare(self, tokens: int) -> tuple[float, list[int]]:
        """Compile, check the answer and warm up; returns its relative error and the groups that are fused."""
        from tools.benchmark.cases import dtype_of
        from tools.benchmark.files import read_reference

        dtype = dtype_of(self._name, self._settings.device)
        reference = read_reference(self._folder, tokens, dtype)
        self._contestant.prepare(reference.input)
        fused = "fxfuse" in self._name or "fused" in self._name
        error = reference.check(self._contestant.answer(), fused=fused)
        self.round()
        return error, self._contestant.groups

    def round(self) -> list[float]:
        """Time one round."""
        return time_round(self._contestant.call, self._contestant.wait, self._settings.seconds)
