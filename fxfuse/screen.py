"""What the command line shows: the step while it works, what the library logs, the table at the end."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fxfuse.progress import Step
from fxfuse.report import Report
from fxfuse.table import draw, plain

__all__ = ["show_drawing", "show_lines", "show_report", "show_steps", "write_out"]

_PIPED_WIDTH = 110
_BRACKETS = "┌│└"
_BAR_ROOM = 60
"""Columns from which on a bar fits beside the words."""


def show_report(report: Report, dry_run: bool = False) -> None:
    """Print the table, in the terminal's width and style, or as plain text into a pipe."""
    show_drawing(draw(report, dry_run))


def show_drawing(drawing: RenderableType) -> None:
    """Print what rich can draw, in the terminal's width and style, or as plain text into a pipe."""
    if sys.stdout is None:  # closed by the caller
        return
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(drawing)
        return
    width = console.width if "COLUMNS" in os.environ else _PIPED_WIDTH
    write_out(f"{plain(drawing, width)}\n")


def show_lines(write: Callable[[int | None, str], Iterable[tuple[str, str]]]) -> None:
    """Print the styled lines of `write(width, brackets)`; into a pipe plain ones of any width."""
    if sys.stdout is None:
        return
    console = Console(highlight=False)
    brackets = _BRACKETS if _can_show(_BRACKETS) else "/|\\"
    if not console.is_terminal:
        width = console.width if "COLUMNS" in os.environ else None
        write_out("".join(f"{text}\n" for text, _ in write(width, brackets)))
        return
    for text, style in write(console.width, brackets):
        console.print(Text(text, style=style), soft_wrap=True)


def write_out(text: str) -> None:
    """Write to stdout; a reader that leaves early is no error."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; what Python flushes at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def show_steps() -> Iterator[Callable[[str], None]]:
    """If stderr is a terminal, a line there tells the step and is gone at the end; logs stand above it.

    A step that is counted (`progress.track`) is drawn as a bar with the time left.
    """
    console = Console(stderr=True, highlight=False)
    with console.status("starting") as status, _logging(), warnings.catch_warnings():
        # Of other libraries, to those who program with them: a user of a command can do nothing about it.
        warnings.simplefilter("ignore", FutureWarning)
        yield lambda text: status.update(_drawn(text, console.width))


def _drawn(text: str, width: int) -> RenderableType:
    """A step as a line: its words, and where it is counted a bar with the time left, if there is room."""
    if not isinstance(text, Step) or text.total is None or width < _BAR_ROOM:
        return Text(text, overflow="ellipsis", no_wrap=True)
    line = Table.grid(padding=(0, 1))
    line.add_column(no_wrap=True, max_width=width // 2)
    line.add_row(
        Text(text.what, overflow="ellipsis"),
        ProgressBar(total=max(text.total, 1), completed=text.done, width=width // 4),
        Text(text.removeprefix(f"{text.what}: ")),
    )
    return line


class _Prefixed(logging.Formatter):
    """Says once that it is fxfuse who speaks."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, behind the program's name."""
        return f"fxfuse: {super().format(record).removeprefix('fxfuse: ')}"


@contextmanager
def _logging() -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(_Prefixed())
    log = logging.getLogger("fxfuse")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
