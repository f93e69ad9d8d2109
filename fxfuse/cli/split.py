"""`fxfuse split`: undo a fusion, so that the blocks can be grouped in another way."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fxfuse.cli.codes import DONE, NOTHING

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "undo a fusion: write the blocks of every wide FFN"
DESCRIPTION = (
    "Write a model that fxfuse fused with the blocks that its wide FFNs were made of, in sequence as before "
    "or, with --parallel, side by side as they were fused."
)
EPILOG = "exit codes: 0 written; 1 verification failed; 2 bad arguments or input; 3 nothing to split"


def add_arguments(found: argparse.ArgumentParser) -> None:
    """The model and where it goes."""
    found.add_argument("model", type=Path, metavar="MODEL.onnx", help="a model that fxfuse wrote")
    found.add_argument("-o", "--output", type=Path, metavar="OUT.onnx", help="default: MODEL.split.onnx")
    found.add_argument(
        "--parallel", action="store_true", help="keep what the fused model computes: blocks side by side"
    )
    found.add_argument("--force", action="store_true", help="overwrite the output")


def run(options: argparse.Namespace, _told: Callable[[BaseException], str]) -> int:
    """Split and show. Returns the exit code."""
    from fxfuse.screen import show_steps, write_out

    try:
        with show_steps() as progress:
            from fxfuse.splitting import split_onnx  # takes seconds, with something on the screen

            report = split_onnx(
                options.model,
                options.output,
                parallel=options.parallel,
                force=options.force,
                progress=progress,
            )
    except KeyboardInterrupt as error:
        error.args = ("nothing was written",)
        raise
    write_out(f"{report}\n")
    return DONE if report.output is not None else NOTHING
