"""The data file of an ONNX model while it grows: room for what is computed in place, copies of the rest.

A tensor that gets room is written through a memory map, so that its bytes are never held in memory and once
more in the file; what is copied goes from file to file inside the system where it can.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import uses_external_data

from fxfuse.external import pieces, size, span

__all__ = ["DataFile"]

_ALIGNMENT = 4096
_WORTH = 1 << 20
_HELD = "fxfuse.held"
# What a file system answers that cannot copy within itself, or take space before it is written.
_UNABLE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


class DataFile:
    """A new file at `path`; tensors start at multiples of 4096 bytes, as memory maps want them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)  # a map of an earlier file of this name keeps that one
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._end = 0
        self._rooms: dict[int, tuple[int, int]] = {}
        self._copier = ThreadPoolExecutor(1)
        self._begun: dict[tuple[Hashable, ...], tuple[int, Future[None]]] = {}

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._copier.shutdown(cancel_futures=True)
        if error is None and os.name == "posix":
            Thread(target=_flush, args=(os.dup(self._file.fileno()),), daemon=True).start()
        self._file.close()

    def room(self, shape: Sequence[int], elem_type: int) -> np.ndarray[Any, Any]:
        """A writable array over a new place in the file.

        Raises:
            OSError: The disk is full: its bytes are taken now, since a map would find out too late.
        """
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
        length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        offset = self._take(length)
        array = np.memmap(self.path, dtype, "r+", offset, tuple(shape))
        self._rooms[array.__array_interface__["data"][0]] = offset, length
        return array

    def refer(self, name: str, array: np.ndarray[Any, Any]) -> onnx.TensorProto | None:
        """A stored tensor that points to the place of `array`; None where `room` did not make it."""
        place = self._rooms.get(array.__array_interface__["data"][0])
        if place is None or not array.flags.c_contiguous:
            return None
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
        _point(tensor, self.path.name, *place)
        tensor.external_data.add(key=_HELD, value=str(self.path))
        return tensor

    def holds(self, tensor: onnx.TensorProto) -> bool:
        """Whether `refer` made the stored tensor, whatever it is called by now."""
        return any(entry.key == _HELD and entry.value == str(self.path) for entry in tensor.external_data)

    @staticmethod
    def settled(tensor: onnx.TensorProto) -> onnx.TensorProto:
        """A tensor that `refer` made, without the mark that tells it from those of other files."""
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        del copy.external_data[:]
        copy.external_data.extend(entry for entry in tensor.external_data if entry.key != _HELD)
        return copy

    def keep(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """`array` at a place in the file, so that memory need not hold it; a small one stays as it is."""
        dtype = np.dtype(array.dtype)
        if array.nbytes < _WORTH or array.__array_interface__["data"][0] in self._rooms or _is_packed(dtype):
            return array
        room = self.room(array.shape, onnx.helper.np_dtype_to_tensor_dtype(dtype))
        room[...] = array
        return room

    def begin(self, tensors: Iterable[onnx.TensorProto], folder: Path) -> None:
        """Start to copy external tensors, beside whatever else is done; `add` then waits for theirs alone."""
        for tensor in tensors:
            if _bytes_of(tensor) in self._begun:
                continue
            length = size(tensor)
            offset = self._take(length)
            done = self._copier.submit(self._fill, tensor, folder, offset, length)
            self._begun[_bytes_of(tensor)] = offset, done

    def add(self, tensor: onnx.TensorProto, folder: Path, stored: onnx.TensorProto) -> None:
        """Copy the bytes of `tensor`, whose external data lie in `folder`, and let `stored` point there."""
        length = size(tensor)
        offset, done = self._begun.get(_bytes_of(tensor), (None, None))
        if offset is None:
            offset = self._take(length)
            self._fill(tensor, folder, offset, length)
        elif done is not None:
            done.result()
        _point(stored, self.path.name, offset, length)

    def _fill(self, tensor: onnx.TensorProto, folder: Path, offset: int, length: int) -> None:
        """Write the bytes of a tensor to a place that was taken."""
        with open(self.path, "r+b", buffering=0) as file:
            if not _copy(tensor, folder, file, offset, length):
                file.seek(offset)
                for piece in pieces(tensor, folder) if uses_external_data(tensor) else [tensor.raw_data]:
                    _write_all(file, piece)

    def _take(self, length: int) -> int:
        offset = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        self._end = offset + length
        if length and not self._fallocate(offset, length):
            self._file.truncate(self._end)
        return offset

    def _fallocate(self, offset: int, length: int) -> bool:
        """Take disk space; False where the system cannot."""
        if not hasattr(os, "posix_fallocate"):
            return False
        try:
            os.posix_fallocate(self._file.fileno(), offset, length)
        except OSError as error:
            if error.errno in _UNABLE:
                return False
            raise
        return True


def _flush(handle: int) -> None:
    """Start on bringing a file to the disk, which whoever puts it in its place waits for."""
    with contextlib.suppress(OSError):  # told there
        os.fsync(handle)
    os.close(handle)


def _copy(tensor: onnx.TensorProto, folder: Path, target: FileIO, offset: int, length: int) -> bool:
    """Copy inside the system; False where that cannot be done, with nothing or a part written."""
    place = span(tensor) if uses_external_data(tensor) else None
    if place is None or not hasattr(os, "copy_file_range"):
        return False
    name, start = place
    with open(folder / name, "rb") as source:
        done = 0
        while done < length:
            ends = source.fileno(), target.fileno()
            try:
                copied = os.copy_file_range(*ends, length - done, start + done, offset + done)
            except OSError as error:
                if error.errno in _UNABLE:
                    return False
                raise
            if copied == 0:
                return False
            done += copied
    return True


def _bytes_of(tensor: onnx.TensorProto) -> tuple[Hashable, ...]:
    """Which bytes an external tensor stands for: two tensors may share them."""
    return size(tensor), *sorted((entry.key, entry.value) for entry in tensor.external_data)


def _is_packed(dtype: np.dtype[Any]) -> bool:
    """Whether several elements share a byte in a file, though not in an array."""
    return dtype.name in ("int2", "uint2", "int4", "uint4", "float4_e2m1fn")


def _point(tensor: onnx.TensorProto, name: str, offset: int, length: int) -> None:
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _write_all(file: FileIO, data: bytes) -> None:
    """Write without a buffer, which may take fewer bytes than it is given."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
