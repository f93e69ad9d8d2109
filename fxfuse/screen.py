"""What the command line shows: the step while it works, what the library logs, the table at the end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from fxfuse.report import Report
from fxfuse.table import draw, render

__all__ = ["show_report", "show_steps"]

_PIPED_WIDTH = 110


def show_report(report: Report, dry_run: bool = False) -> None:
    """Print the table, in the terminal's width and style, or as plain text into a pipe."""
    if sys.stdout is None:  # closed by the caller
        return
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(draw(report, dry_run))
        return
    width = console.width if "COLUMNS" in os.environ else _PIPED_WIDTH
    try:
        sys.stdout.write(f"{render(report, width, dry_run)}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; what Python flushes at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def show_steps() -> Iterator[Callable[[str], None]]:
    """If stderr is a terminal, a line there tells the step and is gone at the end; logs stand above it."""
    console = Console(stderr=True, highlight=False)
    with console.status("starting") as status, _logging():
        yield lambda text: status.update(text)


@contextmanager
def _logging() -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fxfuse: %(message)s"))
    log = logging.getLogger("fxfuse")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
