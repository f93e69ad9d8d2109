"""Output that appears whole or not at all: written beside its place, synced to the disk, then renamed.

    with stage("out/model.onnx", inputs=["in/model.onnx"]) as staging:
        write(staging.path("model.onnx.data"))
        write(staging.path("model.onnx"))

The files grow under their final names in a folder `.model.onnx.fxfuse-partial-...` beside the target, so
that a model finds its data there as it will later. Data move into place first, the model last; where data are
replaced, the old model leaves first. A process killed in between therefore leaves no model rather than a
wrong one, and the partial folder holds what is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from .disks import check_folder, check_space, explain_write, sync
from .errors import FxfuseError, InputError

__all__ = ["Staging", "default_output", "stage"]

AnyPath: TypeAlias = "str | os.PathLike[str]"


def default_output(model_path: AnyPath) -> Path:
    """MODEL.fused.onnx beside MODEL.onnx, MODEL.fused.pt2 beside MODEL.pt2."""
    path = Path(model_path)
    if path.suffix == ".pt2":
        return path.with_suffix(".fused.pt2")
    return path.parent / f"{path.stem if path.suffix == '.onnx' else path.name}.fused.onnx"


@contextlib.contextmanager
def stage(
    target: AnyPath, *, inputs: Iterable[AnyPath] = (), force: bool = False, needed: int | None = None
) -> Iterator[Staging]:
    """Write a file and the data beside it so that they appear together or not at all.

    Args:
        target: The file that a user names; it appears last.
        inputs: Files that the output must not replace, the input's external data among them.
        force: Replace what is there, the input too.
        needed: About how many bytes will be written, if known: checked first, and told when the disk is full.

    Raises:
        InputError: The target is an input, exists, or lies in a folder that is missing or cannot be written.
        FxfuseError: The disk is full.
    """
    target = Path(os.path.abspath(target))
    _check_place(target, needed)
    staging: Staging | None = None
    try:
        staging = Staging(target, tuple(Path(path) for path in inputs), force)
        yield staging
        staging.commit()
    except FxfuseError:
        raise
    except Exception as error:
        partial = staging.folder if staging is not None else None
        told = explain_write(error, target.parent, partial, needed)
        if told is None:
            raise
        raise told from error
    finally:
        if staging is not None:
            staging.discard()


class Staging:
    """The files of one output while they are written; `stage` makes it."""

    def __init__(self, target: Path, inputs: tuple[Path, ...], force: bool) -> None:
        self.target = target
        self._inputs = inputs
        self._force = force
        self._refuse(target)
        self.folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.fxfuse-partial-", dir=target.parent))
        self._replaced = self.folder / ".replaced"

    def path(self, name: str) -> Path:
        """Give the path to write the file to that will be `name` beside the target.

        Raises:
            InputError: It is an input or exists already, and `force` was not given.
        """
        if Path(name).name != name:
            raise ValueError(f"{name!r} is not a plain file name")
        self._refuse(self.target.parent / name)
        return self.folder / name

    def commit(self) -> None:
        """Sync every file to the disk and move all into place; undo the moves if one fails."""
        names = [entry.name for entry in os.scandir(self.folder) if entry.is_file()]
        if self.target.name not in names:
            raise FxfuseError(f"{self.target} was not written, so nothing was put in its place: report this.")
        names.sort(key=lambda name: name == self.target.name)
        for name in names:
            self._refuse(self.target.parent / name)
            sync(self.folder / name)
        sync(self.folder)
        _move_all(self._moves(names))
        sync(self.target.parent)

    def discard(self) -> None:
        """Remove the partial folder, unless it holds replaced files that could not be put back."""
        failed = os.path.lexists(self.folder / self.target.name)
        if failed and self._replaced.exists() and any(self._replaced.iterdir()):
            return
        shutil.rmtree(self.folder, ignore_errors=True)

    def _moves(self, names: list[str]) -> list[tuple[Path, Path]]:
        """List the renames: old files out if data are among them, the model first; new ones in, it last."""
        there = self.target.parent
        old = [name for name in reversed(names) if os.path.lexists(there / name)]
        moves = [(self.folder / name, there / name) for name in names]
        if old in ([], [self.target.name]):
            return moves
        self._replaced.mkdir()
        return [(there / name, self._replaced / name) for name in old] + moves

    def _refuse(self, path: Path) -> None:
        if self._force:
            return
        for source in self._inputs:
            if _is_same(path, source):
                raise InputError(f"{path} is the input {source}: choose another output or force it.")
        if os.path.lexists(path):
            raise InputError(f"{path} exists already: choose another output or force it.")


def _check_place(target: Path, needed: int | None) -> None:
    check_folder(target.parent)
    if target.is_dir():
        raise InputError(f"{target} is a folder: give the name of a file in it.")
    if target.exists() and not target.is_file():  # a device, which a rename would replace for everybody
        raise InputError(f"{target} is no regular file: choose another output.")
    if needed is not None:
        check_space(target.parent, needed)


def _is_same(path: Path, other: Path) -> bool:
    """Whether two paths are one file, through symlinks and hard links too."""
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    return path.exists() and other.exists() and os.path.samefile(path, other)


def _move_all(moves: list[tuple[Path, Path]]) -> None:
    """Rename in order; the last rename decides: before it everything is undone, after it all is in place."""
    try:
        for source, place in moves:
            os.replace(source, place)
    except BaseException:
        if os.path.lexists(moves[-1][0]):
            for source, place in reversed(moves):
                if not os.path.lexists(source):
                    os.replace(place, source)
        raise
