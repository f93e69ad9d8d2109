"""ONNX files: read with external data left on disk, written without serializing all weights at once."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import _get_all_tensors, uses_external_data

from fxfuse.errors import InputError
from fxfuse.external import data_files, elements, external_tensors, locate_data, pieces, size, take_in

__all__ = [
    "load_model",
    "read_tensor",
    "write_model",
    "total_bytes",
    "count_parameters",
    "infer_shapes",
    "file_size",
]

INLINE_LIMIT = 1 << 30
"""Bytes of weights up to which a model that kept them inside the file stays one file."""
_ALIGNMENT = 4096
_SMALL = 1024


def load_model(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, Path]:
    """Read a model without its external data; gives the folder that those lie in, too.

    Raises:
        InputError: There is no such file, it is not an ONNX model or cut short, or its data cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the model file in it.")
    if not path.is_file():
        raise InputError(f"There is no model file {path}: check the path.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: write the model again.")
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not an ONNX model, or is cut short: {_first_line(error)}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    if missing := _missing(model):
        raise InputError(f"{path} is not an ONNX model, or not a whole one: it has no {missing}.")
    _check_stored(model, path)
    return model, locate_data(model, path)


def read_tensor(tensor: onnx.TensorProto, folder: Path) -> np.ndarray[Any, Any]:
    """The array of a stored tensor, from the file or from the data beside it."""
    if uses_external_data(tensor):
        held = onnx.TensorProto()
        held.CopyFrom(tensor)
        take_in(held, folder)
        tensor = held
    return onnx.numpy_helper.to_array(tensor)


def total_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all stored weights."""
    return sum(size(tensor) for tensor in model.graph.initializer)


def count_parameters(model: onnx.ModelProto) -> int:
    """Elements of all stored floating-point tensors, and of quantised ones."""
    whole = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
    return sum(elements(tensor) for tensor in model.graph.initializer if tensor.data_type not in whole)


def file_size(model: onnx.ModelProto, path: Path, folder: Path) -> int:
    """Bytes of a written model and of its data in `folder`."""
    return sum(each.stat().st_size for each in (path, *data_files(model, folder)))


def write_model(model: onnx.ModelProto, folder: Path, path: Path, data: Path | None) -> onnx.ModelProto:
    """Write `model` (its external data lie in `folder`) to `path`, weights to `data` where that is given.

    Without `data`, external weights are taken into the file. Returns the model as it was written.
    """
    written = onnx.ModelProto()
    written.CopyFrom(model)
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(open(data, "wb")) if data is not None else None
        # ONNX Runtime reads no data file for the values in a Constant node, so only stored weights move out.
        inside = written.graph.initializer if target is not None else ()
        for tensor in [
            *external_tensors(written),
            *(each for each in inside if not uses_external_data(each)),
        ]:
            if target is not None and data is not None:
                _move_out(tensor, folder, target, data.name)
            else:
                take_in(tensor, folder)
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
        if size(tensor) <= _SMALL and not uses_external_data(tensor):
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    with contextlib.suppress(Exception):
        inferred = onnx.shape_inference.infer_shapes(light)
        full = onnx.ModelProto()
        full.CopyFrom(model)
        full.graph.value_info.extend(v for v in inferred.graph.value_info if v.name not in known)
        return full
    return model


def _check_stored(model: onnx.ModelProto, path: Path) -> None:
    """A tensor whose bytes do not fill its shape would fail far from here."""
    for tensor in _get_all_tensors(model):
        if tensor.data_type not in onnx.TensorProto.DataType.values()[1:]:
            raise InputError(
                f"{path} is damaged: tensor {tensor.name} has no known type ({tensor.data_type})."
            )
        held = len(tensor.raw_data) if tensor.HasField("raw_data") else size(tensor)
        if held != size(tensor):
            raise InputError(f"{path} is damaged: tensor {tensor.name} holds {held} bytes of {size(tensor)}.")


def _missing(model: onnx.ModelProto) -> str:
    parts = {"graph": model.HasField("graph"), "opset": model.opset_import, "output": model.graph.output}
    return next((name for name, part in parts.items() if not part), "")


def _move_out(tensor: onnx.TensorProto, folder: Path, target: Any, name: str) -> None:
    """Append the bytes of one tensor to the data file and point to them there."""
    external = uses_external_data(tensor)
    if not external and (not tensor.HasField("raw_data") or len(tensor.raw_data) < _SMALL):
        return
    target.write(b"\0" * (-target.tell() % _ALIGNMENT))
    offset = target.tell()
    if external:
        for piece in pieces(tensor, folder):
            target.write(piece)
    else:
        target.write(tensor.raw_data)
        tensor.ClearField("raw_data")
    length = target.tell() - offset
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
