"""What else lies in a checkpoint's folder: tokenizer, generation config, licence go along, weights do not."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from fxfuse.checkpoints.tensors import INDEX

__all__ = ["CARD", "CONFIG", "OLD_CARD", "RECORD", "SideFile", "side_files"]

CONFIG = "config.json"
CARD = "README.md"
OLD_CARD = "README-source.md"
"""The source's card: it is of another model, and a card has one head of metadata, so ours stands alone."""
RECORD = "fxfuse.json"

_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".onnx_data", ".h5", ".msgpack", ".npz",
    ".index.json",
)  # fmt: skip


@dataclass(frozen=True)
class SideFile:
    """A file that is copied, under the path `name` in the output."""

    source: Path
    name: str

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.source.stat().st_size


def side_files(folder: Path, read: Collection[Path] = ()) -> tuple[list[SideFile], list[str]]:
    """The files that go along, and the names of those left behind: weights and what lies beside them.

    Hidden files, the config and the record are neither, nor are the files whose tensors are `read`.
    """
    kept: list[SideFile] = []
    left: list[str] = []
    for place, names in _walk(folder):
        prefix = "" if place == folder else f"{place.relative_to(folder).as_posix()}/"
        weights = {name for name in names if name.lower().endswith(_WEIGHTS)}
        others = sorted(name for name in weights if place / name not in read and name != INDEX)
        if prefix and weights:  # a folder of weights holds files that speak of those
            left += [prefix] if others else []
            continue
        left += others
        kept += _kept(place, prefix, names - weights)
    return kept, left


def _kept(place: Path, prefix: str, names: set[str]) -> list[SideFile]:
    if prefix:
        return [SideFile(place / name, prefix + name) for name in sorted(names)]
    dropped = {CONFIG, RECORD} | ({CARD} if OLD_CARD in names else set())
    renamed = {CARD: OLD_CARD}
    return [SideFile(place / name, renamed.get(name, name)) for name in sorted(names - dropped)]


def _walk(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = {name for name in names if not name.startswith(".") and (Path(place) / name).is_file()}
        yield Path(place), found
