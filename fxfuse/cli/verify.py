"""`fxfuse verify`: is a checkpoint whole, and which programs will load it?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fxfuse.checkpoints.reader_names import READERS
from fxfuse.cli.codes import DONE, FAILED
from fxfuse.cli.paths import named_path
from fxfuse.report_file import check_report_place, write_text

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "check a checkpoint, and tell which programs will load it"
DESCRIPTION = (
    "Check the folder of a checkpoint: its files, its config.json against its tensors, and the rules of "
    "every program that reads decoders whose layers differ. Nothing is changed, and of weights only "
    "padding is read."
)
EPILOG = (
    "exit codes: 0 it is whole, and the readers that were asked for load it; 1 it is not, or one does not; "
    "2 bad arguments, or files that cannot be read"
)


def add_arguments(found: argparse.ArgumentParser) -> None:
    """The folder, the readers that matter, and where the JSON goes."""
    found.add_argument(
        "folder", type=named_path, metavar="DIR", help="a checkpoint: config.json and safetensors"
    )
    found.add_argument(
        "--reader",
        action="append",
        default=[],
        choices=READERS,
        metavar="NAME",
        help=f"fail where this program does not load it; may be given several times ({', '.join(READERS)})",
    )
    found.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the same as JSON, to FILE or to the screen",
    )


def run(options: argparse.Namespace, _told: Callable[[BaseException], str]) -> int:
    """Verify and show. Returns the exit code."""
    path = Path(options.json) if options.json not in (None, "-") else None
    if path is not None:
        check_report_place(
            path, options.folder.glob("*")
        )  # among them config.json, which looks like a report
    from fxfuse.screen import show_steps, write_out

    with show_steps() as progress:
        progress("reading headers")
        from fxfuse.checkpoints.verifying import verify_checkpoint  # takes seconds, with something shown

        verdict = verify_checkpoint(options.folder)
    if options.json == "-":
        write_out(verdict.to_json())
    elif path is not None:
        write_text(path, verdict.to_json())
    if options.json != "-":
        write_out(f"{verdict}\n")
    wanted = all(verdict.by(reader).loads for reader in options.reader)
    return DONE if verdict.loads and wanted else FAILED
