"""The file of --report: its place is checked before any work, and it appears whole, also after an error."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fxfuse.errors import FxfuseError, InputError

if TYPE_CHECKING:
    from fxfuse.report import Report

__all__ = ["check_report_place", "write_report", "write_text"]


def check_report_place(path: Path, taken: Iterable[Path], what: str = "report") -> None:
    """Refuse a place that cannot be written or would cost the user a file: only a report is overwritten.

    Raises:
        InputError: The report cannot go there.
    """
    real = Path(os.path.realpath(path))
    if real in [Path(os.path.realpath(each)) for each in taken]:
        raise InputError(f"The {what} would overwrite {path}: choose another file.")
    if real.is_dir():
        raise InputError(f"The {what} cannot be {path}, which is a folder: give the name of a file in it.")
    if not real.parent.is_dir():
        raise InputError(f"There is no folder {real.parent} for the {what}: make it first.")
    if real.is_file() and not _is_report(real):
        raise InputError(f"The {what} would overwrite {path}, which is no {what}: choose another file.")
    if _is_special(real):
        return
    try:
        _partial(real).touch()
        _partial(real).unlink()
    except OSError as error:
        raise InputError(f"The {what} {path} cannot be written: {error.strerror}.") from None


def write_report(path: Path, report: Report) -> None:
    """Write a report as JSON.

    Raises:
        FxfuseError: The disk is full, or the place is not to be written any more.
    """
    from fxfuse.versions import versions

    report.versions = report.versions or versions()
    told = "" if report.output is None else f"; the model {report.output} was written"
    write_text(path, report.to_json(), told)


def write_text(path: Path, text: str, told: str = "", what: str = "report") -> None:
    """Write `text` beside its place and rename it; into a pipe or a device directly.

    Raises:
        FxfuseError: The disk is full, or the place is not to be written any more; `told` ends the sentence.
    """
    real = Path(os.path.realpath(path))
    special = _is_special(real)
    partial = real if special else _partial(real)
    try:
        partial.write_text(text, encoding="utf-8")
        if not special:
            os.replace(partial, real)
    except OSError as error:
        raise FxfuseError(f"The {what} {path} cannot be written ({error.strerror}){told}.") from None
    finally:
        if not special:
            with contextlib.suppress(OSError):
                partial.unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name[:200]}.{os.getpid()}.partial")


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _is_report(path: Path) -> bool:
    """An empty file passes, as mktemp leaves one."""
    try:
        with open(path, "rb") as file:
            return file.read(1) in (b"", b"{") and (
                path.stat().st_size == 0 or isinstance(json.loads(path.read_bytes()), dict)
            )
    except (OSError, ValueError):
        return False
