"""Programs of torch.export as files: .pt2, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import torch
from torch.export import ExportedProgram

from fxfuse.errors import InputError
from fxfuse.files import stage
from fxfuse.quiet import quiet

__all__ = ["SUFFIX", "check_program_place", "load_program", "save_program"]

AnyPath: TypeAlias = "str | os.PathLike[str]"
SUFFIX = ".pt2"


def load_program(path: AnyPath) -> ExportedProgram:
    """The program in a .pt2 file.

    Raises:
        InputError: There is no such file, or torch.export did not write it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no model file {path}: check the path.")
    if not zipfile.is_zipfile(path):  # torch.export would tell it with a traceback on the screen
        raise InputError(f"{path} is no program of torch.export: write it with torch.export.save.")
    try:
        with quiet("torch.export"):
            return torch.export.load(path)
    except Exception as error:  # zip, JSON and pickle errors, and torch's own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{path} is no program of torch.export ({first}): write it with torch.export.save."
        ) from error


def save_program(
    program: ExportedProgram, path: AnyPath, *, inputs: Iterable[AnyPath] = (), force: bool = False
) -> None:
    """Write a program to a .pt2 file, which appears whole or not at all.

    Args:
        program: What is written.
        path: The file; its name ends in .pt2.
        inputs: Files that must not be replaced.
        force: Replace what is there.

    Raises:
        InputError: The path is no .pt2 file, exists, or lies where nothing can be written.
        FxfuseError: The disk is full.
    """
    path = Path(os.path.abspath(path))
    _check_name(path)
    weights = {id(tensor): tensor for tensor in program.state_dict.values()}.values()
    needed = sum(tensor.nbytes for tensor in weights)
    with stage(path, inputs=inputs, force=force, needed=needed) as staging, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, staging.path(path.name))


def check_program_place(path: AnyPath, *, inputs: Iterable[AnyPath] = (), force: bool = False) -> None:
    """Refuse before any work a place that `save_program` would refuse after it.

    Raises:
        InputError: See `save_program`.
    """
    path = Path(os.path.abspath(path))
    _check_name(path)
    with contextlib.suppress(_Stop), stage(path, inputs=inputs, force=force):
        raise _Stop


class _Stop(Exception):
    """Leaves `stage` before anything is written."""


def _check_name(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise InputError(f"{path} must end in {SUFFIX}: that is how torch.export's files are called.")
