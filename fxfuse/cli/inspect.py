"""`fxfuse inspect`: show the residual stream of a model, its chains, and why not more."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fxfuse.cli.codes import DONE
from fxfuse.report_file import check_report_place, write_text

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "show the residual stream, its chains, and why not more"
DESCRIPTION = (
    "Show the residual stream of a model, one line per block in order, which runs of FFN blocks are chains, "
    "and for every other norm and FFN one sentence why it is not in one. Nothing is fused."
)
EPILOG = "exit codes: 0 shown; 1 internal error; 2 bad arguments or input"


def add_arguments(found: argparse.ArgumentParser) -> None:
    """The model, and where the JSON goes."""
    found.add_argument(
        "model",
        metavar="MODEL",
        help="an ONNX file, or module:function for a Python function without arguments that returns a torch "
        "model and a tuple of its example inputs (FILE.py:function works too)",
    )
    found.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the same as JSON, to FILE or to the screen",
    )


def run(options: argparse.Namespace, _told: Callable[[BaseException], str]) -> int:
    """Inspect and show. Returns the exit code."""
    path = Path(options.json) if options.json not in (None, "-") else None
    if path is not None:
        check_report_place(path, [Path(options.model)])
    from fxfuse.screen import show_lines, show_steps, write_out

    with show_steps() as progress:
        from fxfuse.inspection.api import inspect_model  # takes seconds, with something on the screen

        found = inspect_model(options.model, progress=progress)
    if options.json == "-":
        write_out(found.to_json())
    elif path is not None:
        write_text(path, found.to_json())
    if options.json != "-":
        show_lines(found.write)
    return DONE
