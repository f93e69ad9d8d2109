"""Activations that are kept between passes: in memory up to a bound, beyond it in a temporary file.

The file has no name where the system allows it, so that nothing is left behind even by a process that is
killed. Room that is dropped is used again. What is read from it is a tensor of the reader's own, which stays
valid whatever is dropped later.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Hashable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from fxfuse.disks import size_words
from fxfuse.errors import InputError

__all__ = ["DEFAULT_BOUND", "Activations"]

DEFAULT_BOUND = 2 << 30


@dataclass(frozen=True)
class _Place:
    """Where in the file a tensor lies, and what it is."""

    offset: int
    room: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class Activations:
    """Tensors by key and batch; a context manager that frees all it holds at the end, also after an error.

    A tensor that `get` gives may be the one that is kept: do not write into it.

    Args:
        bound: Bytes that are held in memory; what comes on top goes to the disk.
        folder: Where the temporary file lies; the system's own temporary folder by default.
    """

    def __init__(self, bound: int = DEFAULT_BOUND, folder: str | os.PathLike[str] | None = None) -> None:
        if bound < 0:
            raise InputError(f"The memory bound must be 0 bytes or more, not {bound}.")
        self.bound = bound
        self.folder = Path(folder or tempfile.gettempdir())
        self.bytes_in_memory = 0
        self.bytes_on_disk = 0
        """Bytes that lie on the disk now."""
        self.bytes_written = 0
        """Bytes that were ever sent to the disk."""
        self._held: dict[tuple[Hashable, int], Tensor] = {}
        self._places: dict[tuple[Hashable, int], _Place] = {}
        self._free: list[tuple[int, int]] = []
        self._file: FileIO | None = None
        self._end = 0

    def __enter__(self) -> Activations:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def note(self) -> str | None:
        """A sentence for the report where the disk was needed."""
        if not self.bytes_written:
            return None
        return (
            f"{size_words(self.bytes_written)} of activations went to a temporary file in {self.folder}, "
            f"beyond the {size_words(self.bound)} allowed in memory."
        )

    def put(self, key: Hashable, batch: int, tensor: Tensor) -> None:
        """Keep `tensor` under `key` for the batch, in the place of what was kept there.

        Raises:
            InputError: The disk is full, or the folder cannot be written.
        """
        self._remove((key, batch))
        tensor = tensor.detach()
        size = tensor.nbytes
        if self.bytes_in_memory + size > self.bound:
            self._places[key, batch] = self._write(tensor)
            return
        if tensor.untyped_storage().nbytes() > size:  # a part of something larger would keep all of it
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        self._held[key, batch] = tensor
        self.bytes_in_memory += size

    def get(self, key: Hashable, batch: int) -> Tensor:
        """What was kept, bit for bit.

        Raises:
            KeyError: Nothing was kept there, or it was dropped.
        """
        if (key, batch) in self._held:
            return self._held[key, batch]
        return self._read(self._places[key, batch])

    def __contains__(self, place: tuple[Hashable, int]) -> bool:
        return place in self._held or place in self._places

    def drop(self, key: Hashable) -> None:
        """Forget `key` for all batches; its room is free again. Nothing happens where it is not kept."""
        for place in [each for each in (*self._held, *self._places) if each[0] == key]:
            self._remove(place)

    def close(self) -> None:
        """Forget everything, and take the file away."""
        self._held.clear()
        self._places.clear()
        self._free.clear()
        self._end = self.bytes_in_memory = self.bytes_on_disk = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _remove(self, place: tuple[Hashable, int]) -> None:
        held = self._held.pop(place, None)
        if held is not None:
            self.bytes_in_memory -= held.nbytes
        written = self._places.pop(place, None)
        if written is not None:
            self.bytes_on_disk -= written.room
            self._give_back(written.offset, written.room)

    def _give_back(self, offset: int, room: int) -> None:
        """Add a free stretch of the file, joined with those that touch it."""
        joined: list[tuple[int, int]] = []
        for start, length in sorted([*self._free, (offset, room)]):
            if joined and sum(joined[-1]) == start:
                joined[-1] = joined[-1][0], joined[-1][1] + length
            else:
                joined.append((start, length))
        self._free = joined

    def _take(self, room: int) -> int:
        """The start of `room` bytes: the first free stretch that is long enough, or the file's end."""
        for index, (start, length) in enumerate(self._free):
            if length >= room:
                self._free[index : index + 1] = [(start + room, length - room)] if length > room else []
                return start
        start, self._end = self._end, self._end + room
        return start

    def _write(self, tensor: Tensor) -> _Place:
        data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        offset = self._take(data.nbytes)
        place = _Place(offset, data.nbytes, tensor.shape, tensor.dtype, tensor.device)
        try:
            if self._file is None:
                self._file = _open(self.folder)
            self._file.seek(offset)
            view = memoryview(data.data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            self._give_back(offset, data.nbytes)
            why = "is full" if error.errno == errno.ENOSPC else f"cannot be written ({error.strerror})"
            raise InputError(
                f"The folder {self.folder}, which takes activations beyond the memory bound of "
                f"{size_words(self.bound)}, {why}: allow more memory, or set TMPDIR to another folder."
            ) from error
        self.bytes_on_disk += data.nbytes
        self.bytes_written += data.nbytes
        return place

    def _read(self, place: _Place) -> Tensor:
        data = torch.empty(place.room, dtype=torch.uint8)
        if place.room:
            assert self._file is not None
            self._file.seek(place.offset)
            view = memoryview(data.numpy().data)
            while view:
                read = self._file.readinto(view)
                assert read, "the temporary file ends early"
                view = view[read:]
        return data.view(place.dtype).reshape(place.shape).to(place.device)


def _open(folder: Path) -> FileIO:
    """A file without a name, and without a buffer, so that a full disk is found where it is written."""
    return tempfile.TemporaryFile(dir=folder, buffering=0)
