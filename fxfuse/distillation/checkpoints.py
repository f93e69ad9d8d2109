"""Where a distillation stands, on the disk: one file in a folder, whole at every moment.

The file is written beside its place, synced and renamed, so that a process killed at any moment leaves the
checkpoint before or the new one. With it goes what the run was made of: student, teacher, data and recipe.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fxfuse.disks import explain_write, sync
from fxfuse.distillation.recipe import Recipe
from fxfuse.distillation.subjects import Subject
from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch

__all__ = ["Checkpoints", "fingerprint"]

FORMAT = 1
NAME = "distillation.pt"


class Checkpoints:
    """The checkpoint of one run in `folder`, which is made; without a folder nothing is kept.

    Raises:
        InputError: The folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._made = self.folder is not None and not self.folder.exists()
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"The folder {folder} cannot be made ({error.strerror}): choose another."
                ) from None

    def read(self, made_of: Mapping[str, Any], resume: bool) -> dict[str, Any] | None:
        """The checkpoint to go on from; None where there is none.

        Raises:
            InputError: There is one and `resume` is not set, it cannot be read, or it is of another run.
        """
        if self.folder is None:
            if resume:
                raise InputError("To resume, name the folder that holds the checkpoint.")
            return None
        path = self.folder / NAME
        if not path.exists():
            return None
        found = self._load(path)
        if not resume:
            raise InputError(
                f"{self.folder} has a distillation at step {found['step']}: resume it, or remove that folder."
            )
        _check_same(self.folder, found["made_of"], made_of)
        return found

    def write(self, content: Mapping[str, Any]) -> None:
        """Replace the checkpoint.

        Raises:
            FxfuseError: The disk is full, or the folder cannot be written.
        """
        if self.folder is None:
            return
        beside = self.folder / f"{NAME}.part"
        try:
            torch.save({"format": FORMAT, **content}, beside)
            sync(beside)
            os.replace(beside, self.folder / NAME)
            sync(self.folder)
        except (OSError, RuntimeError) as error:
            beside.unlink(missing_ok=True)
            told = explain_write(error, self.folder, None, None)
            if told is None:
                raise
            raise told from error

    def remove(self) -> None:
        """Take the checkpoint away, and the folder where nothing else is in it."""
        if self.folder is None:
            return
        for name in (NAME, f"{NAME}.part"):
            (self.folder / name).unlink(missing_ok=True)
        self._made = True
        self.tidy()

    def tidy(self) -> None:
        """Take a folder away that was made here and holds nothing."""
        if self.folder is not None and self._made and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            if found["format"] == FORMAT:
                return found  # type: ignore[no-any-return]
            reason = f"format {found['format']}"
        except Exception as error:  # zip and pickle errors, and torch's own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{path} is no checkpoint of this fxfuse ({reason}): remove it, or choose another folder."
        )


def fingerprint(
    student: Subject, teacher: Subject, fit: Sequence[Batch], held_out: Sequence[Batch], recipe: Recipe
) -> dict[str, Any]:
    """What a run is made of: digests of both models and the data, and the recipe's fields."""
    data = (pair for batch in (*fit, *held_out) for pair in batch.items())
    return {"student": _digest(student), "teacher": _digest(teacher), "data": _hash(data)} | asdict(recipe)


def _check_same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    other = [name for name in here if there.get(name) != here[name]]
    if not other:
        return
    name = other[0]
    if name in ("student", "teacher", "data"):
        what = "of other data" if name == "data" else f"of another {name}"
    else:
        what = f"with {name}={there.get(name)!r}, not {here[name]!r}"
    raise InputError(
        f"The distillation in {folder} was begun {what}: give the same as then, or choose another folder."
    )


def _digest(subject: Subject) -> str:
    code = subject.module.code if isinstance(subject.module, fx.GraphModule) else ""
    return _hash(subject.module.state_dict().items(), code)


def _hash(tensors: Iterable[tuple[str, Tensor]], text: str = "") -> str:
    found = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
