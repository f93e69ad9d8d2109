"""Where a page may go: a new file, or in the place of an earlier page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fxfuse.errors import InputError
from fxfuse.page.sections import GENERATOR
from fxfuse.report_file import check_report_place

__all__ = ["check_page_place"]


def check_page_place(path: Path, inputs: Sequence[Path]) -> None:
    """Refuse a place that cannot be written or would cost the user a file, before any work.

    Raises:
        InputError: The page cannot go there.
    """
    real = Path(os.path.realpath(path))
    if not real.is_file():
        check_report_place(path, inputs, "page")
    elif not _is_page(real):
        raise InputError(f"The page would overwrite {path}, which is no page of fxfuse: choose another file.")


def _is_page(path: Path) -> bool:
    """An empty file passes, as mktemp leaves one."""
    try:
        with open(path, "rb") as file:
            head = file.read(400)
    except OSError:
        return False
    return not head or f'name="generator" content="{GENERATOR}'.encode() in head
