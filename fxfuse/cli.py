"""The command line: fuse the FFN chains of an ONNX model.

Exit codes: 0 written (or would be, with --dry-run); 1 verification failed or an internal error; 2 bad
arguments or unreadable input; 3 nothing to fuse, or nothing within budget; 130 and 143 interrupted. Nothing
is written but for 0.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fxfuse._version import __version__
from fxfuse.budget import Budget
from fxfuse.errors import FxfuseError
from fxfuse.files import default_output
from fxfuse.naming import printable
from fxfuse.report_file import check_report_place, write_report
from fxfuse.signals import Terminated, terminable

if TYPE_CHECKING:
    from fxfuse.report import Report

__all__ = ["main", "parser"]

WRITTEN, FAILED, BAD_INPUT, NOTHING, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"fxfuse: error: {message} (fxfuse --help lists the arguments)\n")


def parser() -> argparse.ArgumentParser:
    """The arguments; their names are the fields of `Budget` wherever they mean the same."""
    defaults = Budget()
    found = _Parser(
        prog="fxfuse",
        description="Find runs of norm-FFN residual blocks in an ONNX model, make each run one wide FFN, "
        "verify it in ONNX Runtime and write the result.",
        epilog="exit codes: 0 written; 1 verification failed; 2 bad arguments or input; 3 nothing to fuse, "
        "or nothing within budget",
    )
    found.add_argument(
        "model", type=Path, metavar="MODEL.onnx", help="the model; its external data lie beside it"
    )
    found.add_argument("-o", "--output", type=Path, metavar="OUT.onnx", help="default: MODEL.fused.onnx")
    found.add_argument(
        "--inputs", action="append", metavar="FILE.npz", default=None,
        help="a sample to measure on, one array per graph input; may be repeated (default: drawn)",
    )  # fmt: skip
    budget = found.add_argument_group("budget: what loss is allowed")
    loss = budget.add_mutually_exclusive_group()
    loss.add_argument(
        "--min-sqnr", type=float, metavar="DB", default=defaults.min_sqnr,
        help="least signal-to-noise ratio of each group's update in dB (default: %(default)g)",
    )  # fmt: skip
    loss.add_argument(
        "--no-budget", action="store_const", const=None, dest="min_sqnr", help="fuse whatever is legal"
    )
    budget.add_argument(
        "--max-kl", type=float, metavar="X", help="greatest KL divergence of the logits, in nats"
    )
    budget.add_argument("--max-group", type=int, metavar="N", help="most blocks in one group")
    budget.add_argument("--include", metavar="RE", help="fuse only blocks whose name matches")
    budget.add_argument("--exclude", metavar="RE", help="leave out blocks whose name matches")
    run = found.add_argument_group("running")
    run.add_argument(
        "--provider", choices=("auto", "cuda", "cpu"), default="auto", help="ONNX Runtime's provider"
    )
    run.add_argument(
        "--seed",
        type=int,
        default=defaults.seed,
        metavar="N",
        help="for inputs that are drawn (default: %(default)s)",
    )
    run.add_argument("--report", type=Path, metavar="FILE.json", help="write what was found and measured")
    run.add_argument("--dry-run", action="store_true", help="do everything but write the model")
    run.add_argument("--force", action="store_true", help="overwrite the output")
    run.add_argument("--debug", action="store_true", help="show tracebacks")
    found.add_argument("--version", action="version", version=f"fxfuse {__version__}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
    try:
        options = parser().parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        with terminable():
            return _run(options)
    except (Exception, KeyboardInterrupt) as error:  # the last resort: a user gets one sentence
        if options.debug:
            traceback.print_exc()
        code, message = _explain(error)
    print("fxfuse: error:", printable(message), file=sys.stderr)
    return code


def _run(options: argparse.Namespace) -> int:
    from fxfuse.report import Report

    report = Report(model=str(options.model))
    if options.report is not None:
        check_report_place(options.report, _places(options))
    try:
        _fuse(options, report)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            error.args = ("nothing was written",)
        report.error = _explain(error)[1]
        if options.report is not None:
            with contextlib.suppress(FxfuseError):
                write_report(options.report, report)
        raise
    if options.report is not None:
        write_report(options.report, report)
    _show(report, options.dry_run)
    return WRITTEN if report.groups else NOTHING


def _fuse(options: argparse.Namespace, report: Report) -> None:
    budget = {each.name: getattr(options, each.name) for each in fields(Budget)}
    Budget.of(budget)  # before anything that takes time
    from fxfuse.screen import show_steps

    with show_steps() as progress:
        from fxfuse.onnx_api import fuse_onnx  # takes seconds, with something on the screen

        fuse_onnx(
            options.model,
            options.output,
            inputs=options.inputs,
            provider=options.provider,
            force=options.force,
            dry_run=options.dry_run,
            progress=progress,
            report=report,
            **budget,
        )


def _show(report: Report, dry_run: bool) -> None:
    from fxfuse.screen import show_report

    show_report(report, dry_run)


def _places(options: argparse.Namespace) -> Iterator[Path]:
    """The files that the report must not take, which may not be there yet."""
    for each in (options.model, options.output or default_output(options.model)):
        yield each
        yield each.parent / f"{each.name}.data"


def _explain(error: BaseException) -> tuple[int, str]:
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
    """A sentence about a field of `Budget`, under its name on the command line."""
    name = next((each.name for each in fields(Budget) if re.match(rf"{each.name}\b", text)), None)
    if name is None:
        return text
    return f"--{name.replace('_', '-')}{text[len(name) :]}".replace(" or None", "")


if __name__ == "__main__":
    sys.exit(main())
