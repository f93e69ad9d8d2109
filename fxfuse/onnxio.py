"""ONNX files: read with external data left on disk, written without ever serializing the weights as a whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

from fxfuse.errors import InputError

__all__ = ["load_model", "read_tensor", "write_model", "total_bytes", "count_parameters", "infer_shapes", "file_size", "data_files"]

INLINE_LIMIT = 1 << 30
"""Bytes of weights up to which a model that kept them inside the file stays one file."""
_ALIGNMENT = 4096
_SMALL = 1024


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read a model without its external data, and check that those are there.

    Raises:
        InputError: There is no such file, it is not an ONNX model or cut short, or its data are missing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no model file {path}: check the path.")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not an ONNX model, or is cut short: {_first_line(error)}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    if not model.HasField("graph") or not model.opset_import:
        raise InputError(f"{path} is not an ONNX model: it holds no graph.")
    _check_data(model, path)
    return model


def read_tensor(tensor: onnx.TensorProto, folder: Path) -> np.ndarray[Any, Any]:
    """The array of a stored tensor, from the file or from the data beside it."""
    return onnx.numpy_helper.to_array(tensor, base_dir=str(folder))


def data_files(model: onnx.ModelProto, folder: Path) -> list[Path]:
    """The files that hold the model's external data."""
    names = {ExternalDataInfo(each).location for each in _get_all_tensors(model) if uses_external_data(each)}
    return [folder / name for name in sorted(names)]


def total_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all stored weights."""
    return sum(_size(tensor) for tensor in model.graph.initializer)


def count_parameters(model: onnx.ModelProto) -> int:
    """Elements of all stored floating-point tensors, and of quantised ones."""
    whole = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
    return sum(_elements(tensor) for tensor in model.graph.initializer if tensor.data_type not in whole)


def file_size(model: onnx.ModelProto, path: Path) -> int:
    """Bytes of a written model and of the data beside it."""
    return sum(each.stat().st_size for each in (path, *data_files(model, path.parent)))


def write_model(model: onnx.ModelProto, folder: Path, path: Path, data: Path | None) -> onnx.ModelProto:
    """Write `model` (its external data lie in `folder`) to `path`, weights to `data` where that is given.

    Without `data`, external weights are taken into the file. Returns the model as it was written.
    """
    written = onnx.ModelProto()
    written.CopyFrom(model)
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(open(data, "wb")) if data is not None else None
        for tensor in _get_all_tensors(written):
            if target is not None and data is not None:
                _move_out(tensor, folder, target, data.name)
            elif uses_external_data(tensor):
                _take_in(tensor, folder)
    with open(path, "wb") as file:
        file.write(written.SerializeToString())
    return written


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the shapes that an exporter left out; weights are not looked at, so any size is quick.

    The model itself is returned where nothing is missing or inference fails.
    """
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    if all(output in known or not output for node in model.graph.node for output in node.output):
        return model
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.value_info.extend(model.graph.value_info)
    for tensor in model.graph.initializer:
        if _size(tensor) <= _SMALL and not uses_external_data(tensor):
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    with contextlib.suppress(Exception):
        inferred = onnx.shape_inference.infer_shapes(light)
        full = onnx.ModelProto()
        full.CopyFrom(model)
        full.graph.value_info.extend(v for v in inferred.graph.value_info if v.name not in known)
        return full
    return model


def _check_data(model: onnx.ModelProto, path: Path) -> None:
    for tensor in _get_all_tensors(model):
        if not uses_external_data(tensor):
            continue
        info = ExternalDataInfo(tensor)
        file = path.parent / info.location
        if os.path.isabs(info.location) or ".." in Path(info.location).parts:
            raise InputError(f"{path} points to data outside its folder ({info.location}): this is refused.")
        if not file.is_file():
            raise InputError(f"{path} needs its weights in {file}, which is missing: put it beside the model.")
        end = (info.offset or 0) + (info.length or _size(tensor))
        if file.stat().st_size < end:
            raise InputError(f"{file} is cut short: tensor {tensor.name} ends at byte {end}, the file before it.")


def _size(tensor: onnx.TensorProto) -> int:
    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError):
        width = 1
    return _elements(tensor) * width


def _elements(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _move_out(tensor: onnx.TensorProto, folder: Path, target: Any, name: str) -> None:
    """Append the bytes of one tensor to the data file and point to them there."""
    external = uses_external_data(tensor)
    if not external and (not tensor.HasField("raw_data") or len(tensor.raw_data) < _SMALL):
        return
    target.write(b"\0" * (-target.tell() % _ALIGNMENT))
    offset = target.tell()
    if external:
        for piece in _pieces(tensor, folder):
            target.write(piece)
    else:
        target.write(tensor.raw_data)
        tensor.ClearField("raw_data")
    length = target.tell() - offset
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _take_in(tensor: onnx.TensorProto, folder: Path) -> None:
    tensor.raw_data = b"".join(_pieces(tensor, folder))
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT


def _pieces(tensor: onnx.TensorProto, folder: Path) -> Iterator[bytes]:
    info = ExternalDataInfo(tensor)
    left = info.length or _size(tensor)
    with open(folder / info.location, "rb") as file:
        file.seek(info.offset or 0)
        while left > 0 and (piece := file.read(min(left, 1 << 24))):
            left -= len(piece)
            yield piece


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


