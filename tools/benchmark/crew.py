"""The processes: asked one by one or all at once, with a limit on every answer, replaced when they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import Any

from fxfuse.timing.workers import Failure, Worker
from tools.benchmark.cases import Settings

__all__ = ["Crew", "Process"]

HOST = "tools.benchmark.hosting:open_host"


class Process(Worker):
    """A worker that can be stopped from another thread."""

    def stop(self) -> None:
        """End the process now: who waits for its answer gets a failure."""
        self._process.kill()


class Crew:
    """One process for each name, started when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: dict[str, Process] = {}
        self._threads = ThreadPoolExecutor(64)

    def ask(self, process: str, request: str, *arguments: Any, patience: float | None = None) -> Any:
        """The answer of one process.

        Raises:
            Failure: The request failed, took too long, or the process ended; a new one then takes its place.
        """
        return self._wait(process, self._submit(process, request, arguments), patience)

    def ask_all(
        self,
        requests: Mapping[str, Sequence[tuple[str, tuple[Any, ...]]]],
        patience: float | None = None,
        tell: Callable[[str, Any], None] = lambda process, answer: None,
    ) -> dict[str, list[Any]]:
        """Answers by process, all at work at once; each does its requests one after another.

        A failure stands in the place of its answer. `tell` hears each answer as it comes.
        """
        pending = {
            process: self._threads.submit(self._one_after_another, process, wanted, patience, tell)
            for process, wanted in requests.items()
        }
        return {process: future.result() for process, future in pending.items()}

    def start(self, processes: Sequence[str]) -> None:
        """Start processes ahead of their first request."""
        for process in processes:
            self._worker(process)

    def has(self, process: str) -> bool:
        """Whether the process is there; one that failed badly is not."""
        return process in self._workers

    def close(self) -> None:
        """End all processes: all are told before the first is waited for."""
        for worker in self._workers.values():
            worker.dismiss()
        for process in list(self._workers):
            self._drop(process)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _one_after_another(
        self,
        process: str,
        wanted: Sequence[tuple[str, tuple[Any, ...]]],
        patience: float | None,
        tell: Callable[[str, Any], None],
    ) -> list[Any]:
        answers: list[Any] = []
        for request, arguments in wanted:
            try:
                answers.append(self.ask(process, request, *arguments, patience=patience))
            except Failure as failure:
                answers.append(failure)
            tell(process, answers[-1])
        return answers

    def _submit(self, process: str, request: str, arguments: tuple[Any, ...]) -> Future[Any]:
        worker = self._worker(process)
        return self._threads.submit(worker.ask, request, *arguments)

    def _wait(self, process: str, future: Future[Any], patience: float | None) -> Any:
        limit = patience or self._settings.patience
        try:
            return future.result(limit)
        except Late:
            worker = self._workers.get(process)
            if worker is not None:
                worker.stop()
            self._drop(process)
            raise Failure(f"it took longer than {limit:.0f} s") from None
        except Failure as failure:
            if "process ended" in str(failure) or "CUDA error" in str(failure):
                self._drop(process)
            raise

    def _worker(self, process: str) -> Process:
        if process not in self._workers:
            self._workers[process] = Process(HOST, self._settings, quiet=not self._settings.verbose)
        return self._workers[process]

    def _drop(self, process: str) -> None:
        worker = self._workers.pop(process, None)
        if worker is not None:
            worker.__exit__(None, None, None)
