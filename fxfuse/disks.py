"""What a file system refuses, in one sentence: a disk that is full, a folder that cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from .errors import FxfuseError, InputError

__all__ = ["check_folder", "check_space", "explain_write", "size_words", "sync"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
# Not every writer passes the errno on: numpy's tofile and the ones written in Rust or C++ put it in words.
_FULL_WORDS = ("No space left on device", "requested and", "Disk quota exceeded")


def check_folder(folder: Path) -> None:
    """Refuse to write in what is no folder.

    Raises:
        InputError: It is not there, or is something else.
    """
    if folder.is_dir():
        return
    if os.path.lexists(folder):
        raise InputError(f"{folder} is no folder: choose another output.")
    raise InputError(f"The folder {folder} does not exist: create it or choose another output.")


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start what will not fit.

    Raises:
        FxfuseError: Fewer than `needed` bytes are free on the folder's disk.
    """
    disk = shutil.disk_usage(folder)
    if disk.total and disk.free < needed:  # a file system that does not count tells 0 of both
        raise _full_disk(folder, needed)


def explain_write(
    error: Exception, folder: Path, partial: Path | None, needed: int | None
) -> FxfuseError | None:
    """Tell a failed write in one sentence; None for an error that is about something else.

    Args:
        error: What was raised.
        folder: Where the output goes, to be named to the user.
        partial: Where it is being written; None while that place is still to be made.
        needed: About how many bytes are written, if known.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code in _FULL or (code is None and any(words in str(error) for words in _FULL_WORDS)):
        return _full_disk(folder, needed)
    if not isinstance(error, OSError):
        return None
    if partial is None or code == errno.EROFS or (code in _REFUSED and _names(error, partial)):
        reason = (error.strerror or "no reason given").lower()
        return InputError(f"The folder {folder} cannot be written ({reason}): choose another output.")
    return None


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def _names(error: OSError, folder: Path) -> bool:
    """Whether an error is about a path in the folder."""
    named = [name for name in (error.filename, error.filename2) if isinstance(name, (str, os.PathLike))]
    return any(Path(os.path.abspath(name)).is_relative_to(folder) for name in named)


def _full_disk(folder: Path, needed: int | None) -> FxfuseError:
    disk = folder
    while not disk.is_mount() and disk != disk.parent:
        disk = disk.parent
    size = f"about {size_words(needed)} needed, " if needed is not None else ""
    room = f"{size}{size_words(shutil.disk_usage(folder).free)} free"
    where = "the disk mounted there" if disk == folder else f"the disk mounted at {disk}"
    return FxfuseError(
        f"No space left for {folder} on {where} ({room}): free some or choose an output on another disk."
    )


def size_words(count: int) -> str:
    """Word a number of bytes: 512 bytes, 1.5 MB, 2.0 GB."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} bytes"
