"""Freed memory that the process keeps: a training step allocates and frees hundreds of megabytes."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
"""Options of glibc's mallopt."""


def keep_freed_memory() -> None:
    """Tell glibc to hold on to freed memory, where there is glibc.

    Handing it back to the system, and being given it again page by page, can take more time than the
    arithmetic, most of all in a virtual machine. It holds for the whole process, so a program calls it, not a
    library.
    """
    if not sys.platform.startswith("linux"):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return
    for option, value in (
        (_ARENA_MAX, 1),
        (_MMAP_THRESHOLD, 32 << 20),
        (_TRIM_THRESHOLD, 2**31 - 1),
        (_TOP_PAD, 64 << 20),
    ):
        set_option(option, value)
