"""The command line: fuse the FFN chains of an ONNX model.

Exit codes: 0 written (or would be, with --dry-run); 1 verification failed or an internal error; 2 bad arguments
or unreadable input; 3 nothing to fuse, or nothing within budget. Nothing is written but for 0.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfuse._version import __version__
from fxfuse.budget import Budget
from fxfuse.errors import FxfuseError, InputError

if TYPE_CHECKING:
    from fxfuse.report import Report

__all__ = ["main", "parser"]

WRITTEN, FAILED, BAD_INPUT, NOTHING = 0, 1, 2, 3


def parser() -> argparse.ArgumentParser:
    """The arguments; their names are the fields of `Budget` wherever they mean the same."""
    defaults = Budget()
    found = argparse.ArgumentParser(
        prog="fxfuse",
        description="Find runs of norm-FFN residual blocks in an ONNX model, make each run one wide FFN, verify it "
        "in ONNX Runtime and write the result.",
        epilog="exit codes: 0 written; 1 verification failed; 2 bad arguments or input; 3 nothing to fuse",
    )
    found.add_argument("model", type=Path, metavar="MODEL.onnx", help="the model; its external data lie beside it")
    found.add_argument("-o", "--output", type=Path, metavar="OUT.onnx", help="default: MODEL.fused.onnx")
    found.add_argument(
        "--inputs", action="append", metavar="FILE.npz", default=None,
        help="a sample to measure on, one array per graph input; may be repeated (default: drawn from --seed)",
    )  # fmt: skip
    budget = found.add_argument_group("budget: what loss is allowed")
    loss = budget.add_mutually_exclusive_group()
    loss.add_argument(
        "--min-sqnr", type=float, metavar="DB", default=defaults.min_sqnr,
        help="least signal-to-noise ratio of each group's update in dB (default: %(default)g)",
    )  # fmt: skip
    loss.add_argument("--no-budget", action="store_const", const=None, dest="min_sqnr", help="fuse whatever is legal")
    budget.add_argument("--max-kl", type=float, metavar="X", help="greatest KL divergence of the logits, in nats")
    budget.add_argument("--max-group", type=int, metavar="N", help="most blocks in one group")
    budget.add_argument("--include", metavar="RE", help="fuse only blocks whose name matches")
    budget.add_argument("--exclude", metavar="RE", help="leave out blocks whose name matches")
    run = found.add_argument_group("running")
    run.add_argument("--provider", choices=("auto", "cuda", "cpu"), default="auto", help="ONNX Runtime's provider")
    run.add_argument("--seed", type=int, default=defaults.seed, help="for inputs that are drawn (default: %(default)s)")
    run.add_argument("--report", type=Path, metavar="FILE.json", help="write what was found and measured")
    run.add_argument("--dry-run", action="store_true", help="do everything but write the model")
    run.add_argument("--force", action="store_true", help="overwrite the output")
    run.add_argument("--debug", action="store_true", help="show tracebacks")
    found.add_argument("--version", action="version", version=f"fxfuse {__version__}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except FxfuseError as error:
        code, message = error.exit_code, str(error)
        if options.debug:
            raise
    except KeyboardInterrupt:
        code, message = 130, "interrupted: nothing was written"
    except Exception as error:  # the last resort: a user gets one sentence, a traceback on request
        if options.debug:
            raise
        code = FAILED
        message = f"internal error ({type(error).__name__}: {_one_line(error)}): run with --debug and report it"
    print(f"fxfuse: error: {message}", file=sys.stderr)
    return code


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from fxfuse.api import fuse_onnx
    from fxfuse.report import Report
    from fxfuse.table import draw

    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    report = Report(model=str(options.model))
    try:
        with _logging(errors), _status(errors) as progress:
            budget = {each.name: getattr(options, each.name) for each in fields(Budget)}
            _check_report_place(options)
            fuse_onnx(
                options.model, options.output, inputs=options.inputs, provider=options.provider, force=options.force,
                dry_run=options.dry_run, progress=progress, report=report, **budget,
            )  # fmt: skip
    except Exception as error:
        report.error = report.error or _one_line(error)
        raise
    finally:
        _write_report(options.report, report)
    console.print(draw(report))
    if report.groups and options.dry_run:
        console.print(f"dry run: {report.output} was not written")
    return WRITTEN if report.groups else NOTHING


def _check_report_place(options: argparse.Namespace) -> None:
    if options.report is None:
        return
    path = options.report.resolve()
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} for the report: make it first.")
    taken = [each.resolve() for each in (options.model, options.output) if each is not None]
    if path in taken:
        options.report = None
        raise InputError(f"The report would overwrite {path}: choose another file.")


def _write_report(path: Path | None, report: Report) -> None:
    """The report appears whole, also after an error."""
    if path is None or not path.resolve().parent.is_dir():
        return
    from fxfuse.versions import versions

    report.versions = report.versions or versions()
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.resolve().parent)
        with os.fdopen(handle, "w") as file:
            json.dump(report.to_dict(), file, indent=2, allow_nan=False)
            file.write("\n")
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"The report {path} cannot be written: {error.strerror}.") from None


@contextmanager
def _status(console: Any) -> Iterator[Any]:
    """One line that tells the step, on a terminal; silent elsewhere."""
    with console.status("starting") as status:
        yield lambda text: status.update(text)


@contextmanager
def _logging(console: Any) -> Iterator[None]:
    """Show what the library says, a line each, on stderr."""
    from rich.logging import RichHandler

    handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False, markup=False)
    log = logging.getLogger("fxfuse")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


if __name__ == "__main__":
    sys.exit(main())
