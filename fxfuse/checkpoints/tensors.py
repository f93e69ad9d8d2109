"""The tensors of a checkpoint on disk: where each lies, and reading some rows of one at a time.

    model.safetensors.index.json   {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    *.safetensors                  8 bytes: the header's length | the header as JSON | the tensors' bytes

Only headers are read when a checkpoint is opened, so that what is missing or cut short is told at once.
Reading goes through plain reads and not through a map of the file, whose pages would count as this process's
memory. Files are described at https://huggingface.co/docs/safetensors. Pickle files are never opened.
"""

from __future__ import annotations

import copy
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from fxfuse.errors import InputError

__all__ = ["DTYPES", "INDEX", "SINGLE", "Stored", "Tensors", "bytes_of", "file_within", "size_of"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LONGEST_HEADER = 100_000_000  # as the safetensors library

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""torch's types by the names that safetensors gives them."""


def size_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return prod(shape) * DTYPES[dtype].itemsize


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: in `file` from byte `start` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return size_of(self.dtype, self.shape)


class Tensors(Mapping[str, Stored]):
    """All tensors of a checkpoint's folder, by name.

    Raises:
        InputError: There is no safetensors file, one is missing, cut short or contradicts the index, or the
            index names a file outside of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: tuple[Path, ...]
        self._stored: dict[str, Stored] = {}
        weight_map = _weight_map(folder)
        names = dict.fromkeys(weight_map.values()) if weight_map else {SINGLE: None}
        self.files = tuple(folder / name for name in names)
        for name in names:
            found = _read_header(folder / name, folder)
            if weight_map:
                listed = {key for key, file in weight_map.items() if file == name}
                _compare(name, listed, set(found))
            self._stored |= found
        self._own = self._stored

    def __getitem__(self, name: str) -> Stored:
        return self._stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(each.nbytes for each in self._stored.values())

    def replaced(self, files: Sequence[Path]) -> Tensors:
        """The same, with the tensors of other safetensors files in the place of those of their names.

        Raises:
            InputError: Such a file is missing or broken.
        """
        made = copy.copy(self)
        made.files = (*self.files, *files)
        made._stored = dict(self._stored)
        for path in files:
            made._stored |= _read_header(path, path.parent)
        return made

    def path_of(self, file: Path) -> str:
        """A file's path within the folder; of one that lies elsewhere and stands in, its name."""
        return file.relative_to(self.folder).as_posix() if file.is_relative_to(self.folder) else file.name

    def home_of(self, name: str) -> Stored:
        """A tensor as it lies in the folder, also where another stands in its place."""
        return self._own.get(name, self._stored[name])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of a tensor, all by default, in memory of their own and in the stored type.

        Raises:
            InputError: The file was cut short meanwhile.
        """
        found = self._stored[name]
        rows = found.shape[0] if found.shape else 1
        stop = rows if stop is None else stop
        row = found.nbytes // max(1, rows)
        shape = (stop - start, *found.shape[1:]) if found.shape else ()
        out = torch.empty(shape, dtype=DTYPES[found.dtype])
        with found.file.open("rb", buffering=0) as file:
            _fill(bytes_of(out), file, found.start + start * row, name)
        return out

    def read_columns(self, name: str, rows: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor:
        """Columns [start, stop) of some rows of a matrix, without reading the others.

        Raises:
            InputError: The file was cut short meanwhile.
        """
        found = self._stored[name]
        out = torch.empty((rows[1] - rows[0], columns[1] - columns[0]), dtype=DTYPES[found.dtype])
        size = out.element_size()
        buffer, width, step = bytes_of(out), out.shape[1] * size, found.shape[1] * size
        position = found.start + rows[0] * step + columns[0] * size
        with found.file.open("rb", buffering=0) as file:
            for row in range(len(out)):
                _fill(buffer[row * width : (row + 1) * width], file, position + row * step, name)
        return out


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat) if tensor.numel() else memoryview(b"")


def _fill(buffer: memoryview, file: FileIO, position: int, name: str) -> None:
    place = 0
    while place < len(buffer):
        file.seek(position + place)
        got = file.readinto(buffer[place : place + (1 << 30)])
        if not got:
            raise InputError(f"{Path(str(file.name))} ends within {name}: copy the checkpoint anew.")
        place += got


def _weight_map(folder: Path) -> dict[str, str]:
    """Which file holds which tensor, by the index; {} where there is one file and no index."""
    if not folder.is_dir():
        told = f"{folder} is no folder" if folder.exists() else f"There is no folder {folder}"
        raise InputError(f"{told}: give the folder of a Hugging Face checkpoint.")
    path = folder / INDEX
    if not path.exists():
        if (folder / SINGLE).exists():
            return {}
        raise InputError(_nothing(folder))
    try:
        found = json.loads(path.read_bytes())["weight_map"]
        pairs = {name: file_within(file, path) for name, file in found.items()}
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is no index with a weight_map: copy the checkpoint anew.") from None
    if not pairs:
        raise InputError(f"{path} lists no tensors: copy the checkpoint anew.")
    return pairs


def _nothing(folder: Path) -> str:
    pickles = [each.name for each in folder.iterdir() if each.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickles:
        return (
            f"{folder} holds pickle files ({pickles[0]}), which can run any code and are not opened: convert "
            "them with save_pretrained of transformers, which writes safetensors."
        )
    return f"{folder} holds neither {SINGLE} nor {INDEX}: give the folder of a Hugging Face checkpoint."


def file_within(name: str, index: Path) -> str:
    """A file's name, from an index or record at `index`.

    Raises:
        InputError: It leads out of the folder.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        raise InputError(f"{index} names the file {name!r} outside of its folder: correct the index.")
    return name


def _read_header(path: Path, folder: Path) -> dict[str, Stored]:
    """What a file holds, with its length held against it."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no .safetensors file: only those are opened.")
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            start = file.read(8)
            size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= size <= min(_LONGEST_HEADER, length - 8):
                raise InputError(f"{path} is cut short or no safetensors file: copy it anew.")
            header = json.loads(file.read(size))
        found = {
            name: _stored(name, entry, path, 8 + size)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path.relative_to(folder)} is missing in {folder}: copy it there.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"The header of {path} is not that of a safetensors file ({error}): copy it anew."
        ) from None
    end = 8 + size
    for each in sorted(found.values(), key=lambda one: one.start):
        if each.start != end:
            raise InputError(f"The tensors of {path} overlap or leave gaps at {each.name}: copy it anew.")
        end += each.nbytes
    if end != length:
        told = "cut short" if end > length else "longer than its header says"
        raise InputError(f"{path} is {told} ({length:,} bytes of {end:,}): copy it anew.")
    return found


def _stored(name: str, entry: Mapping[str, Any], path: Path, base: int) -> Stored:
    dtype, shape = str(entry["dtype"]), tuple(int(each) for each in entry["shape"])
    begin, end = (int(each) for each in entry["data_offsets"])
    if dtype not in DTYPES:
        raise InputError(
            f"{name} in {path} has the type {dtype}, which is not known: use another checkpoint."
        )
    if min(shape, default=0) < 0 or end - begin != size_of(dtype, shape):
        raise ValueError(f"{name} has {end - begin} bytes for shape {list(shape)} in {dtype}")
    return Stored(name, dtype, shape, path, base + begin)


def _compare(file: str, listed: set[str], held: set[str]) -> None:
    if missing := sorted(listed - held):
        raise InputError(f"The index says that {file} holds {missing[0]}, and it does not: copy both anew.")
    if extra := sorted(held - listed):
        raise InputError(f"{file} holds {extra[0]}, which the index does not place there: copy both anew.")
