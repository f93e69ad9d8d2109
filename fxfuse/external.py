"""The external data of an ONNX model: where they lie, whether they are whole, and their bytes."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

from fxfuse.errors import InputError

__all__ = [
    "cut",
    "data_files",
    "elements",
    "external_tensors",
    "load_data",
    "locate_data",
    "map_array",
    "pieces",
    "size",
    "span",
    "take_in",
]

_RUN, _STRIDE = "fxfuse.run", "fxfuse.stride"
_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


def external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor, in attributes and subgraphs too, whose bytes lie outside of the model's file."""
    return (tensor for tensor in _get_all_tensors(model) if uses_external_data(tensor))


def data_files(model: onnx.ModelProto, folder: Path) -> list[Path]:
    """The files in `folder` that hold the model's external data."""
    return [folder / name for name in sorted({_info(each).location for each in external_tensors(model)})]


def locate_data(model: onnx.ModelProto, path: Path) -> Path:
    """Check that the data of the model at `path` are there, whole and its own; returns their folder.

    A download cache is made of links, which are followed as ONNX Runtime follows them: out of the model's
    folder only to where the model itself is a link to. The locations in `model` then name the real files.

    Raises:
        InputError: Data are missing, cut short or outside of the folder, or their place makes no sense.
    """
    found = {name: os.path.realpath(path.parent / name) for name in _locations(model, path)}
    homes = [os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))]
    inside = [home for home in homes if all(Path(real).is_relative_to(home) for real in found.values())]
    if not inside:
        raise _outside(
            path, ", ".join(name for name, real in found.items() if not Path(real).is_relative_to(homes[0]))
        )
    for tensor in external_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = Path(os.path.relpath(found[entry.value], inside[0])).as_posix()
    return Path(inside[0])


def size(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor."""
    kinds = onnx.TensorProto.DataType
    name = kinds.Name(tensor.data_type) if tensor.data_type in kinds.values() else ""
    if name in _BITS:
        return -(-elements(tensor) * _BITS[name] // 8)
    try:
        return elements(tensor) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError):
        return elements(tensor)


def elements(tensor: onnx.TensorProto) -> int:
    """Numbers in a tensor."""
    return math.prod(tensor.dims)


def cut(tensor: onnx.TensorProto, name: str, axis: int, start: int, stop: int) -> onnx.TensorProto:
    """Part of an external tensor along one axis, as a reference to the same file that `pieces` can read."""
    outer = int(np.prod(tensor.dims[:axis], dtype=np.int64))
    inner = size(tensor) // (outer * tensor.dims[axis])
    made = onnx.TensorProto(name=name, data_type=tensor.data_type, data_location=onnx.TensorProto.EXTERNAL)
    made.dims.extend([*tensor.dims[:axis], stop - start, *tensor.dims[axis + 1 :]])
    info = _info(tensor)
    entries = {"location": info.location, "offset": (info.offset or 0) + start * inner}
    if outer > 1:
        entries |= {_RUN: (stop - start) * inner, _STRIDE: tensor.dims[axis] * inner}
    for key, value in entries.items():
        made.external_data.add(key=key, value=str(value))
    return made


def span(tensor: onnx.TensorProto) -> tuple[str, int] | None:
    """The file of an external tensor and where it starts there; None where its bytes do not lie together."""
    if any(entry.key in (_RUN, _STRIDE) for entry in tensor.external_data):
        return None
    info = _info(tensor)
    return info.location, info.offset or 0


def pieces(tensor: onnx.TensorProto, folder: Path) -> Iterator[bytes]:
    """The bytes of an external tensor, a few megabytes at a time."""
    info = _info(tensor)
    left = info.length or size(tensor)
    steps = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key in (_RUN, _STRIDE)}
    if steps:
        yield from _runs(folder / info.location, info.offset or 0, left, steps[_RUN], steps[_STRIDE])
        return
    with open(folder / info.location, "rb") as file:
        file.seek(info.offset or 0)
        while left > 0 and (piece := file.read(min(left, 1 << 24))):
            left -= len(piece)
            yield piece


def _runs(path: Path, offset: int, left: int, run: int, stride: int) -> Iterator[bytes]:
    """`run` bytes of every `stride`, as many at a time as make a few megabytes."""
    table = np.memmap(path, np.uint8, "r", offset, ((left // run - 1) * stride + run,))
    rows = np.lib.stride_tricks.as_strided(table, (left // run, run), (stride, 1), writeable=False)
    step = max(1, (1 << 24) // run)
    for first in range(0, len(rows), step):
        yield rows[first : first + step].tobytes()


def map_array(tensor: onnx.TensorProto, folder: Path) -> np.ndarray[Any, Any] | None:
    """A read-only map of an external tensor's bytes; None where they are no plain array of its type."""
    place, kind = span(tensor), onnx.TensorProto.DataType.Name(tensor.data_type)
    if place is None or kind in _BITS or size(tensor) == 0 or sys.byteorder == "big":
        return None
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    mapped = np.memmap(folder / place[0], dtype, "r", place[1], tuple(tensor.dims) or (1,))
    array = mapped.reshape(tuple(tensor.dims))
    return array if array.flags.aligned else np.array(array)


def take_in(tensor: onnx.TensorProto, folder: Path) -> None:
    """Store the bytes of an external tensor in itself."""
    tensor.raw_data = b"".join(pieces(tensor, folder))
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT


def _info(tensor: onnx.TensorProto) -> Any:
    """Where a tensor lies; onnx warns of keys that are not its own, such as those of `cut`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ExternalDataInfo(tensor)


def load_data(model: onnx.ModelProto, folder: Path) -> None:
    """Take all external data into `model`. onnx's own function refuses a file with a second hard link."""
    for tensor in external_tensors(model):
        take_in(tensor, folder)


def _locations(model: onnx.ModelProto, path: Path) -> set[str]:
    """The names of the data files, each tensor's place in them checked."""
    names = set()
    for tensor in external_tensors(model):
        try:
            info = ExternalDataInfo(tensor)
        except ValueError as error:
            raise InputError(f"{path} does not say where tensor {tensor.name} lies: {error}.") from None
        _check(tensor, info, path)
        names.add(info.location)
    return names


def _check(tensor: onnx.TensorProto, info: Any, path: Path) -> None:
    name = info.location
    if not name or "\0" in name:
        raise InputError(f"{path} does not say where tensor {tensor.name} lies: its file is named {name!r}.")
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise _outside(path, name)
    file = path.parent / name
    if not os.path.isfile(file):  # Path.is_file raises for names that are too long
        raise InputError(f"{path} needs its weights in {file}, which is missing: put it beside the model.")
    if info.length and info.length != size(tensor):
        raise InputError(
            f"{path} gives tensor {tensor.name} {info.length} bytes where it has {size(tensor)}."
        )
    end = (info.offset or 0) + size(tensor)
    if file.stat().st_size < end:
        raise InputError(
            f"{file} is cut short: tensor {tensor.name} ends at byte {end}, the file at "
            f"{file.stat().st_size}."
        )


def _outside(path: Path, names: str) -> InputError:
    return InputError(
        f"{path} points to data outside its folder ({names}), which is refused: copy them beside it."
    )
