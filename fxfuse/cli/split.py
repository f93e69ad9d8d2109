"""`fxfuse split`: undo a fusion, so that the blocks can be grouped in another way."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from fxfuse.cli.codes import DONE, NOTHING
from fxfuse.cli.paths import named_path
from fxfuse.errors import InputError

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "undo a fusion: write the blocks of every wide FFN"
DESCRIPTION = (
    "Write a model that fxfuse fused with the blocks that its wide FFNs were made of, in sequence as before "
    "or, with --parallel, side by side as they were fused. A folder that fxfuse checkpoint wrote becomes the "
    "checkpoint that it was, but for blocks that --recover corrected: these stay corrected."
)
EPILOG = "exit codes: 0 written; 1 verification failed; 2 bad arguments or input; 3 nothing to split"


def add_arguments(found: argparse.ArgumentParser) -> None:
    """The model and where it goes."""
    found.add_argument(
        "model", type=named_path, metavar="MODEL", help="a model.onnx or a folder that fxfuse fused"
    )
    found.add_argument(
        "-o", "--output", type=named_path, metavar="OUT", help="default: MODEL.split.onnx, or FOLDER-split"
    )
    found.add_argument(
        "--parallel",
        action="store_true",
        help="of an ONNX file: keep what the fused model computes, blocks side by side",
    )
    found.add_argument("--force", action="store_true", help="overwrite the output")


def run(options: argparse.Namespace, _told: Callable[[BaseException], str]) -> int:
    """Split and show. Returns the exit code."""
    return _split_folder(options) if options.model.is_dir() else _split_file(options)


def _split_file(options: argparse.Namespace) -> int:
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


def _split_folder(options: argparse.Namespace) -> int:
    from fxfuse.screen import show_steps, write_out

    if options.parallel:
        raise InputError("A checkpoint has no place for blocks side by side: split it without --parallel.")
    try:
        with show_steps() as progress:
            progress("starting")
            from fxfuse.checkpoints.split import split_checkpoint  # takes seconds

            report = split_checkpoint(options.model, options.output, force=options.force, progress=progress)
    except KeyboardInterrupt as error:
        error.args = ("the same command goes on where it was",)
        raise
    write_out(f"{report}\n")
    return DONE
