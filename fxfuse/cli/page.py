"""`fxfuse page`: one HTML page of what the other commands wrote."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fxfuse.cli.codes import DONE

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "make one HTML page of an analysis, a plan and a report"
DESCRIPTION = (
    "Make one self-contained HTML page of the JSON files that the other commands wrote: the residual stream "
    "before and after, loss against group length, the Pareto front, the dependency matrix, the importance of "
    "each attention, the groups, and how to make it again. What is not given is left out."
)
EPILOG = "exit codes: 0 written; 1 internal error; 2 bad arguments or input"


def add_arguments(found: argparse.ArgumentParser) -> None:
    """The files and where the page goes."""
    found.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE.json",
        help="an analysis, a plan, a report or stages, in any order; each says itself what it is",
    )
    found.add_argument(
        "-o", "--output", type=Path, default=Path("page.html"), metavar="OUT.html", help="default: page.html"
    )
    found.add_argument("--png", type=Path, metavar="FOLDER", help="also write each drawing as a PNG file")
    found.add_argument("--title", help="default: the model's name")
    found.add_argument(
        "--command",
        dest="shown_command",
        metavar="TEXT",
        help="the command that made the last of them, to be shown",
    )


def run(options: argparse.Namespace, _told: Callable[[BaseException], str]) -> int:
    """Write the page and say where it is. Returns the exit code."""
    from fxfuse.page.api import write_parts
    from fxfuse.page.reading import read_parts
    from fxfuse.screen import write_out

    written = write_parts(
        options.output,
        read_parts(options.files),
        inputs=options.files,
        title=options.title,
        commands=[each for each in (options.shown_command, getattr(options, "typed", None)) if each],
        png_folder=options.png,
    )
    write_out(f"page: {written}\n")
    return DONE
