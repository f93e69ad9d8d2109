"""Runs ONNX models in ONNX Runtime for measuring; what fails there is told in one sentence."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fxfuse.datafile import DataFile
from fxfuse.errors import FxfuseError, InputError
from fxfuse.external import external_tensors, size, take_in
from fxfuse.frontends.arena import memory_options
from fxfuse.onnxio import read_tensor
from fxfuse.passes.onnx.upcast import has_bfloat16, upcast
from fxfuse.runtime import cuda_problem, load_onnxruntime, one_line
from fxfuse.sessions import Provider, Session, session

__all__ = ["Runner"]

_SMALL = 1024
Arrays = Mapping[str, np.ndarray[Any, Any]]

# What goes wrong is raised, and told once: ONNX Runtime would also write it to the screen. And float32 is
# measured as float32, also on a GPU whose sessions would round products to TF32.
_OPTIONS: dict[str, Any] = {"options": {"log_severity_level": 4}, "cuda_options": {"use_tf32": "0"}}


class Runner:
    """Opens and runs `model` and parts of it; as float32 copies where the provider has no bfloat16.

    `scratch` is a folder for the weights of such copies.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path, provider: Provider, scratch: Path) -> None:
        self.folder = folder
        self.provider = provider
        self.scratch = scratch
        self._on_cpu = provider == "cpu" or cuda_problem() is not None
        self.upcast = has_bfloat16(model) and self._on_cpu

    def open(
        self,
        model: onnx.ModelProto,
        path: Path | None = None,
        folder: Path | None = None,
        *,
        mapped: bool = False,
    ) -> Session:
        """A session over a model that lies at `path`, or only in memory with its data in `folder`.

        Where `mapped`, the CPU reads external data from the file whenever it needs them, which is slower but
        takes no memory.

        Raises:
            InputError: ONNX Runtime cannot load it, or the provider is not there.
        """
        folder = folder or (path.parent if path is not None else self.folder)
        options = _mapped_options(self._on_cpu) if mapped else _OPTIONS
        try:
            if self.upcast:
                # A file that is open or mapped outlives its name.
                with tempfile.TemporaryDirectory(dir=self.scratch, ignore_cleanup_errors=True) as scratch:
                    wide = _as_float32(model, folder, Path(scratch))
                    return session(wide.SerializeToString(), self.provider, folder=scratch, **options)
            if path is not None:
                return session(path, self.provider, **options)
            return session(model.SerializeToString(), self.provider, folder=folder, **options)
        except InputError as error:
            if "cannot load" not in str(error):
                raise
            raise InputError(f"ONNX Runtime cannot load the model: {_reason(error)}.") from error

    def typed(self, value: Any) -> Any:
        """A value as it is given to a session: bfloat16 as float32 where sessions are float32 copies."""
        is_narrow = self.upcast and isinstance(value, np.ndarray) and value.dtype.name == "bfloat16"
        return value.astype(np.float32) if is_narrow else value

    def run(self, opened: Session, names: Sequence[str], arrays: Arrays) -> list[np.ndarray[Any, Any]]:
        """The values `names`; of `arrays`, the ones that the session reads are given to it.

        Raises:
            InputError: The model fails on them.
        """
        feed = {each.name: self.typed(arrays[each.name]) for each in opened.get_inputs()}
        try:
            return list(opened.run(list(names), feed))
        except FxfuseError:
            raise
        except Exception as error:  # onnxruntime's errors share no narrower base
            raise InputError(f"ONNX Runtime fails on the measuring inputs: {_reason(error)}.") from error


def _mapped_options(on_cpu: bool) -> dict[str, Any]:
    """Nothing that would copy weights: no packing, no folding of constants; and threads that sleep soon."""
    level = load_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
    lean = {
        "session.disable_prepacking": "1",
        "session.intra_op.allow_spinning": "0",
        "graph_optimization_level": level,
        **memory_options(on_cpu),
    }
    return _OPTIONS | {"options": _OPTIONS["options"] | lean}


def _as_float32(model: onnx.ModelProto, folder: Path, scratch: Path) -> onnx.ModelProto:
    """A float32 copy of a bfloat16 model, with its external data in `scratch`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with DataFile(scratch / "float32.data") as data:
        for tensor in copy.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            if tensor.data_type != onnx.TensorProto.BFLOAT16:
                data.add(tensor, folder, tensor)
            elif size(tensor) < _SMALL:
                take_in(tensor, folder)
            else:
                room = data.room(tensor.dims, onnx.TensorProto.FLOAT)
                room[...] = read_tensor(tensor, folder)
                stored = data.refer(tensor.name, room)
                assert stored is not None
                tensor.CopyFrom(data.settled(stored))
        for tensor in external_tensors(copy):
            if all(entry.value != data.path.name for entry in tensor.external_data):
                take_in(tensor, folder)
    return upcast(copy)


def _reason(error: Exception) -> str:
    """What ONNX Runtime says, without its codes and the place in its source."""
    text = re.sub(r".*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(str(error)))
    text = re.sub(r"^/\S+:\d+ .*?\) (?=[A-Z])", "", text)
    return text.removeprefix("This is an invalid model. ").removeprefix("Error: ").strip().rstrip(".")
