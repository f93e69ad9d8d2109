"""The inside of a contestant's process: build what the factory makes, then answer requests until they end."""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import signal
import sys
import warnings
from typing import Any

from fxfuse.timing.workers import time_round

__all__ = ["serve"]


def serve() -> None:
    """Read requests from stdin and write answers to stdout, which nothing else may write to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes to stderr
    requests = sys.stdin.buffer
    subject: Any = None
    broken = ""
    try:
        factory, arguments = pickle.load(requests)
        module, _, function = factory.partition(":")
        subject = getattr(importlib.import_module(module), function)(*arguments)
    except EOFError:
        return
    except Exception as error:  # told at every request
        broken = _one_line(error)
    while True:
        try:
            request, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = (False, broken) if broken else (True, _answer(subject, request, arguments))
        except Exception as error:  # whatever it is, the parent reports it and goes on
            answer = (False, _one_line(error))
        pickle.dump(answer, answers)
        answers.flush()


def _answer(subject: Any, request: str, arguments: tuple[Any, ...]) -> Any:
    if request == "round":
        return time_round(subject.call, subject.wait, *arguments)
    return getattr(subject, request)(*arguments)


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
