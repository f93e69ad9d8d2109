"""ONNX files: read with external data left on disk, written without serializing all weights at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import _get_all_tensors, uses_external_data

from fxfuse.datafile import DataFile
from fxfuse.errors import InputError
from fxfuse.external import data_files, elements, external_tensors, locate_data, map_array, size, take_in
from fxfuse.passes.onnx.copies import copy_fields
from fxfuse.passes.onnx.standins import stand_in
from fxfuse.wellformed import problem_of, sort_nodes

__all__ = [
    "load_model",
    "read_tensor",
    "write_model",
    "total_bytes",
    "count_parameters",
    "inferred_shapes",
    "file_size",
]

INLINE_LIMIT = 1 << 30
"""Bytes of weights up to which a model that kept them inside the file stays one file."""
_SMALL = 1024


def load_model(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, Path]:
    """Read a model without its external data; gives the folder that those lie in, too.

    Raises:
        InputError: There is no such file, it is not an ONNX model or cut short, or its data cannot be used.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        raise InputError(
            f"{path} is the folder of a checkpoint, which this does not read: fuse it with fxfuse "
            "checkpoint, or measure it with fxfuse analyze."
        )
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
    if (problem := problem_of(model)) is not None:
        raise InputError(f"{path} is damaged: {problem}.")
    sort_nodes(model.graph)
    _check_stored(model, path)
    return model, locate_data(model, path)


def read_tensor(tensor: onnx.TensorProto, folder: Path) -> np.ndarray[Any, Any]:
    """The array of a stored tensor, from the file or, through a read-only map, from the data beside it."""
    if uses_external_data(tensor):
        mapped = map_array(tensor, folder)
        if mapped is not None:
            return mapped
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


def write_model(
    model: onnx.ModelProto, folder: Path, path: Path, data: Path | DataFile | None
) -> onnx.ModelProto:
    """Write `model` (its external data lie in `folder`) to `path`, weights to `data` where that is given.

    Without `data`, external weights are taken into the file. What `data` holds already stays where it is
    there. Returns the model as it was written.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(data, Path):
            data = stack.enter_context(DataFile(data))
        written = model
        if data is not None:
            written = _moved_out(model, folder, data)
        elif any(external_tensors(model)):
            written = onnx.ModelProto()
            written.CopyFrom(model)
            for tensor in external_tensors(written):
                take_in(tensor, folder)
    with open(path, "wb") as file:
        file.write(written.SerializeToString())
    return written


@contextlib.contextmanager
def inferred_shapes(model: onnx.ModelProto) -> Iterator[None]:
    """Inside, `model` holds the shapes that an exporter left out, as far as they can be inferred.

    Weights are neither looked at nor copied, so any size is quick.
    """
    present = len(model.graph.value_info)
    model.graph.value_info.extend(_missing_shapes(model))
    try:
        yield
    finally:
        del model.graph.value_info[present:]


def _missing_shapes(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    graph = model.graph
    known = {value.name for value in (*graph.value_info, *graph.output)}
    missing = {name for node in graph.node for name in node.output if name and name not in known}
    if not missing:
        return []
    light = onnx.ModelProto()
    copy_fields(model, light, without=("graph",))
    copy_fields(graph, light.graph, without=("node", "initializer"))
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        light.graph.node.extend(stand_in(node, stored))
    for tensor in model.graph.initializer:
        if size(tensor) <= _SMALL and not uses_external_data(tensor):
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    with contextlib.suppress(Exception):
        inferred = onnx.shape_inference.infer_shapes(light)
        return [value for value in inferred.graph.value_info if value.name in missing]
    return []


def _check_stored(model: onnx.ModelProto, path: Path) -> None:
    """A tensor whose bytes do not fill its shape would fail far from here."""
    for tensor in _get_all_tensors(model):
        if tensor.data_type not in onnx.TensorProto.DataType.values()[1:]:
            raise InputError(
                f"{path} is damaged: tensor {tensor.name} has no known type ({tensor.data_type})."
            )
        if any(dim < 0 for dim in tensor.dims):
            raise InputError(
                f"{path} is damaged: tensor {tensor.name} has a negative size ({list(tensor.dims)})."
            )
        held, needed, unit = _held(tensor)
        if held != needed:
            raise InputError(f"{path} is damaged: tensor {tensor.name} holds {held} {unit} of {needed}.")


def _held(tensor: onnx.TensorProto) -> tuple[int, int, str]:
    """What a tensor holds in itself, what its shape needs, and in which unit."""
    if uses_external_data(tensor):
        return 0, 0, "bytes"
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), size(tensor), "bytes"
    name = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    complex_ = tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
    packed = size(tensor) < elements(tensor)
    needed = size(tensor) if packed else elements(tensor) * (2 if complex_ else 1)
    return len(getattr(tensor, name)), needed, "numbers"


def _missing(model: onnx.ModelProto) -> str:
    parts = {"graph": model.HasField("graph"), "opset": model.opset_import, "output": model.graph.output}
    return next((name for name, part in parts.items() if not part), "")


def _moved_out(model: onnx.ModelProto, folder: Path, data: DataFile) -> onnx.ModelProto:
    """A copy whose weights lie in `data`; no weight is held twice on the way there."""
    written = onnx.ModelProto()
    copy_fields(model, written, without=("graph",))
    copy_fields(model.graph, written.graph, without=("initializer",))
    for tensor in external_tensors(written):
        data.add(tensor, folder, tensor)
    for tensor in model.graph.initializer:
        # ONNX Runtime reads no data file for the values in a Constant node, so only stored weights move out.
        stored = written.graph.initializer.add()
        if data.holds(tensor):
            stored.CopyFrom(data.settled(tensor))
        elif not uses_external_data(tensor) and not _is_worth_moving(tensor):
            stored.CopyFrom(tensor)
        else:
            copy_fields(tensor, stored, without=("raw_data",))
            data.add(tensor, folder, stored)
    return written


def _is_worth_moving(tensor: onnx.TensorProto) -> bool:
    return tensor.HasField("raw_data") and size(tensor) >= _SMALL


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
