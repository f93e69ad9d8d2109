"""A folder that appears whole or not at all: filled beside its place, synced to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fxfuse.disks import check_folder, check_space, explain_write, sync
from fxfuse.errors import FxfuseError, InputError

__all__ = ["check_place", "new_folder"]


@contextlib.contextmanager
def new_folder(target: Path, *, mark: str, force: bool, needed: int) -> Iterator[Path]:
    """Give a folder to fill that becomes `target` at the end.

    Args:
        target: Where it goes: a name that is free, an empty folder, or with `force` one that holds `mark`.
        mark: A file that tells that a folder was written by the same command.
        force: Replace such a folder.
        needed: About how many bytes will be written.

    Raises:
        InputError: The target is something else, or cannot be written.
        FxfuseError: The disk is full.
    """
    target = Path(os.path.abspath(target))
    check_place(target, mark=mark, force=force)
    check_space(target.parent, needed)
    partial: Path | None = None
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.fxfuse-partial-", dir=target.parent))
        yield (made := _made(partial))
        for each in (*made.iterdir(), made):
            sync(each)
        _replace(made, target, partial / "old")
        sync(target.parent)
    except FxfuseError:
        raise
    except Exception as error:
        told = explain_write(error, target.parent, partial, needed)
        if told is None:
            raise
        raise told from error
    finally:
        if partial is not None and (target.exists() or not (partial / "old").exists()):
            shutil.rmtree(partial, ignore_errors=True)


def _made(partial: Path) -> Path:
    """A folder with the rights that a new one has here; those of a temporary one are its owner's alone."""
    made = partial / "new"
    made.mkdir()
    return made


def check_place(target: Path, *, mark: str, force: bool) -> None:
    """What `new_folder` refuses.

    Raises:
        InputError: The target is taken, or in no folder.
    """
    check_folder(target.parent)
    if not os.path.lexists(target):
        return
    if not target.is_dir() or target.is_symlink():
        raise InputError(f"{target} is no folder: choose another output.")
    if not any(target.iterdir()):
        return
    if not force:
        raise InputError(f"{target} is not empty: choose another output or force it.")
    if not (target / mark).is_file():
        raise InputError(f"{target} holds no {mark}, so it is not replaced: choose another output.")


def _replace(made: Path, target: Path, old: Path) -> None:
    """Two renames where something is there; if the second fails the first is undone."""
    if not target.exists():
        os.replace(made, target)
        return
    os.replace(target, old)
    try:
        os.replace(made, target)
    except BaseException:
        os.replace(old, target)
        raise
