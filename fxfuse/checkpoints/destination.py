"""The folder that is written: beside its place at first, then renamed, so that it appears whole or not.

    parent/.OUT.fxfuse-partial/     what will be OUT
           .OUT.fxfuse-journal      how far the run is; the last that goes
           .OUT.fxfuse-replaced/    the OUT that was there before, with force, while both are renamed

A killed run leaves these, and the same command goes on with them. One that fails takes them away.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from fxfuse.checkpoints.sidefiles import CONFIG
from fxfuse.disks import check_folder, sync
from fxfuse.errors import InputError

__all__ = ["Destination"]


class Destination:
    """Where a checkpoint goes that is made from the folder `source`.

    Raises:
        InputError: It cannot go there: the place is the source, taken, or none.
    """

    def __init__(self, out: Path, source: Path, *, force: bool = False) -> None:
        self.target = Path(os.path.realpath(out))
        _check_place(self.target, Path(os.path.realpath(source)))
        self.content, self.journal, self._replaced = (
            self.target.with_name(f".{self.target.name}.fxfuse-{what}")
            for what in ("partial", "journal", "replaced")
        )
        self._force = force

    @property
    def renamed(self) -> bool:
        """Whether a run was killed after it had put everything in place and before it had cleaned up."""
        return self.journal.exists() and not self.content.exists() and self.target.is_dir()

    def check_free(self) -> None:
        """Refuse to write over something that the user did not give up.

        Raises:
            InputError: The folder holds something, and with force something that is no checkpoint.
        """
        if not self._holds_something():
            return
        if not self._force:
            raise InputError(f"{self.target} is not empty: choose another folder or force it.")
        if not (self.target / CONFIG).is_file():
            raise InputError(
                f"{self.target} holds no {CONFIG}, so it is not replaced: choose another folder."
            )

    def clear(self) -> None:
        """Throw away what another run wrote or had still to remove; the folder that was there is put back."""
        self._put_back()
        for folder in (self.content, self._replaced):
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self) -> None:
        """Rename: the old folder out of its place, the new one into it."""
        sync(self.content)
        if self._holds_something():
            os.rename(self.target, self._replaced)
        try:
            os.rename(self.content, self.target)
        except BaseException:
            self._put_back()
            raise
        sync(self.target.parent)
        self.clean_up()

    def clean_up(self) -> None:
        """Remove what is left when everything is in place."""
        shutil.rmtree(self._replaced, ignore_errors=True)
        self.journal.unlink()

    def discard(self) -> None:
        """Remove all that was written; an old folder that is not in its place goes back there."""
        self.clear()
        with contextlib.suppress(OSError):
            self.journal.unlink()

    def _holds_something(self) -> bool:
        return self.target.is_dir() and any(self.target.iterdir())

    def _put_back(self) -> None:
        if self._replaced.exists() and not self.target.exists():
            os.rename(self._replaced, self.target)


def _check_place(target: Path, source: Path) -> None:
    if target == source or source.is_relative_to(target) or target.is_relative_to(source):
        raise InputError(f"{target} is the source {source}, holds it or lies in it: choose another folder.")
    check_folder(target.parent)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is no folder: choose another output.")
    if target.is_mount():
        raise InputError(f"{target} is where a disk is mounted: choose a folder in it.")
