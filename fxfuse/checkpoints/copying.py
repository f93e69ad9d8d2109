"""Bytes from one file into another without a stop in this process's memory, where the system can do that."""

from __future__ import annotations

import errno
import os

from fxfuse.errors import InputError

__all__ = ["copy_bytes", "write_at"]

_STEP = 1 << 23
_UNFIT = {
    errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY,
}  # fmt: skip
"""What copy_file_range says of files, file systems and sandboxes that it does not serve."""


def copy_bytes(source: int, start: int, target: int, place: int, count: int) -> None:
    """Copy bytes [start, start + count) of an open file to `place` in another.

    Raises:
        InputError: The source ends before.
        OSError: It cannot be read, or the target not be written.
    """
    done = _in_kernel(source, start, target, place, count)
    while done < count:
        data = os.pread(source, min(_STEP, count - done), start + done)
        if not data:
            raise InputError(
                "A file of the source was cut short while it was read: copy the checkpoint anew."
            )
        write_at(target, place + done, memoryview(data))
        done += len(data)


def write_at(target: int, place: int, data: memoryview) -> None:
    """Write all of `data` at `place`; the system may take less at a time."""
    while data:
        written = os.pwrite(target, data, place)
        place, data = place + written, data[written:]


def _in_kernel(source: int, start: int, target: int, place: int, count: int) -> int:
    """How many bytes the system copied by itself: all, or those before it could not go on."""
    done = 0
    while hasattr(os, "copy_file_range") and done < count:
        try:
            copied = os.copy_file_range(source, target, count - done, start + done, place + done)
        except OSError as error:
            if error.errno in _UNFIT:
                break
            raise
        if not copied:
            break
        done += copied
    return done
