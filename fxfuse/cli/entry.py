"""What all commands share: which one is meant, how errors are told, and the exit code."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from fxfuse._version import __version__
from fxfuse.budget import Budget
from fxfuse.cli import (
    analyze,
    checkpoint,
    compress,
    distill,
    fuse,
    genai,
    inspect,
    page,
    plan,
    remove,
    split,
    verify,
)
from fxfuse.cli.codes import BAD_INPUT, FAILED, INTERRUPTED, TERMINATED
from fxfuse.errors import FxfuseError
from fxfuse.naming import printable
from fxfuse.signals import Terminated, terminable

__all__ = ["explain", "main", "parser"]

COMMANDS = {
    "analyze": analyze,
    "checkpoint": checkpoint,
    "compress": compress,
    "distill": distill,
    "fuse": fuse,
    "genai": genai,
    "inspect": inspect,
    "page": page,
    "plan": plan,
    "remove": remove,
    "split": split,
    "verify": verify,
}


_FLAGS = {
    "batch_size": "--batch-size",
    "held_out": "--held-out",
    "kl_tokens": "--kl-tokens",
    "max_group": "--max-group",
    "max_group_bytes": "--max-group-memory",
    "max_kl": "--max-kl",
    "max_tokens": "--tokens",
    "min_sqnr": "--min-sqnr",
    "quantize_exclude": "--quantize-exclude",
    "shard_size": "--shard-size",
}
"""Options whose names are no words, as they are called on the command line."""

_PHRASES = {
    "dry_run=True": "--dry-run",
    "resume=False": "--restart",
    "force it": "give --force",
}
"""Other advice to those who program, and the same to those who type."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"fxfuse: error: {message} ({self.prog} --help lists the arguments)\n")


def parser() -> argparse.ArgumentParser:
    """All commands with their arguments."""
    found = _Parser(
        prog="fxfuse",
        description="FFN Fusion: find runs of norm-FFN residual blocks in a model, make each one wide FFN.",
        epilog="exit codes: 0 done; 1 verification failed; 2 bad arguments or input; 3 nothing "
        "to do, or nothing within budget",
    )
    found.add_argument("--version", action="version", version=f"fxfuse {__version__}")
    commands = found.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for name, module in COMMANDS.items():
        own = commands.add_parser(
            name, help=module.HELP, description=module.DESCRIPTION, epilog=module.EPILOG
        )
        module.add_arguments(own)
        own.add_argument("--debug", action="store_true", help="show tracebacks")
        own.add_argument(
            "--version", action="version", version=f"fxfuse {__version__}", help=argparse.SUPPRESS
        )
        own.set_defaults(run=module.run)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        found = parser()
        if (wrong := _without_command(words)) is not None:
            found.error(wrong)
        options = found.parse_args(words)
        options.typed = shlex.join(["fxfuse", *words])  # for files that say how they were made
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        with terminable():
            return int(options.run(options, lambda error: explain(error)[1]))
    except (Exception, KeyboardInterrupt) as error:  # the last resort: a user gets one sentence
        if options.debug:
            traceback.print_exc()
        code, message = explain(error)
    print("fxfuse: error:", printable(message), file=sys.stderr)
    return code


def _without_command(words: Sequence[str]) -> str | None:
    """What to type instead, where no command is given."""
    names = ", ".join(COMMANDS)
    if not words:
        return f"give a command: {names}"
    if words[0] in COMMANDS or words[0] in ("-h", "--help", "--version"):
        return None
    if words[0].startswith("-") or Path(words[0]).suffix or Path(words[0]).exists():
        return f"give a command first, as in: fxfuse fuse {shlex.join(words)}"
    near = difflib.get_close_matches(words[0], COMMANDS, 1)
    return f"there is no command {words[0]!r}: " + (
        f"did you mean {near[0]}?" if near else f"choose from {names}"
    )


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the sentence for what stopped the run."""
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, FxfuseError):
        return error.exit_code, _in_flags(text)
    if isinstance(error, KeyboardInterrupt):
        code, what = (
            (TERMINATED, "terminated") if isinstance(error, Terminated) else (INTERRUPTED, "interrupted")
        )
        return code, f"{what}: {text}" if text else what
    if isinstance(error, MemoryError):
        return FAILED, "There is not enough memory for this model and these inputs."
    if isinstance(error, OSError) and error.strerror:
        return (
            (BAD_INPUT, f"{error.filename}: {error.strerror}.")
            if error.filename
            else (FAILED, f"{error.strerror}.")
        )
    what = f"{type(error).__name__}: {text}".removesuffix(": ")
    return FAILED, f"internal error ({what}): run with --debug and report it."


def _in_flags(text: str) -> str:
    """A sentence about options of Python, under their names on the command line.

    Names of one word, such as `include`, may be meant as words: they are options only at the beginning.
    """
    first = "|".join(each.name for each in fields(Budget))
    anywhere = "|".join(_FLAGS)
    pattern = rf"^(?:{first})\b|(?<![\w./'\"-])(?:{anywhere})(?![\w/'\"-]|\.\w)"
    found = re.sub(pattern, lambda match: _FLAGS.get(match[0], f"--{match[0]}"), text)
    for words, typed in _PHRASES.items():
        found = re.sub(rf"(?<![\w./-]){words}(?!\w)", typed, found)
    return found if found == text else found.replace(" or None", "")
