"""The folder of one run: a .pt2 file for each stage, and what was measured between them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from fxfuse.errors import InputError
from fxfuse.frontends.programs import load_program, save_program
from fxfuse.report_file import write_text

__all__ = ["Folder"]

_OPTIONS = "options.json"


class Folder:
    """Keeps the stages under `root`; with `resume`, those of a run with equal options are taken again.

    Raises:
        InputError: The folder holds another run, or one that `resume` was not asked for.
    """

    def __init__(self, root: Path, options: Mapping[str, Any], *, resume: bool) -> None:
        self.root, self.resume = root, resume
        root.mkdir(parents=True, exist_ok=True)
        noted = root / _OPTIONS
        wanted = json.dumps(options, indent=1, sort_keys=True) + "\n"
        if noted.exists() and not resume:
            raise InputError(f"{root} holds a run already: give resume=True (--resume), or another folder.")
        if noted.exists() and noted.read_text(encoding="utf-8") != wanted:
            raise InputError(f"{root} holds a run with other options or data: give another folder.")
        write_text(noted, wanted)

    def path(self, name: str) -> Path:
        """The file of a stage."""
        return self.root / f"{name.replace(' ', '-')}.pt2"

    def program(self, name: str, make: Callable[[], ExportedProgram]) -> ExportedProgram:
        """A stage that lies here already, or a new one, which is written."""
        path = self.path(name)
        if self.resume and path.exists():
            return load_program(path)
        made = make()
        save_program(made, path, force=True)
        return made

    def write(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        write_text(self.root / name, text)
