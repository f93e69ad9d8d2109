"""Runs ONNX models in ONNX Runtime for measuring; what fails there is told in one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fxfuse.errors import FxfuseError, InputError
from fxfuse.external import load_data
from fxfuse.passes.onnx.upcast import has_bfloat16, upcast
from fxfuse.runtime import cuda_problem, one_line
from fxfuse.sessions import Provider, Session, session

__all__ = ["Runner"]

Arrays = Mapping[str, np.ndarray[Any, Any]]

# What goes wrong is raised, and told once: ONNX Runtime would also write it to the screen. And float32 is
# measured as float32, also on a GPU whose sessions would round products to TF32.
_OPTIONS: dict[str, Any] = {"options": {"log_severity_level": 4}, "cuda_options": {"use_tf32": "0"}}


class Runner:
    """Opens and runs `model` and parts of it; as float32 copies where the provider has no bfloat16."""

    def __init__(self, model: onnx.ModelProto, folder: Path, provider: Provider) -> None:
        self.folder = folder
        self.provider = provider
        self.upcast = has_bfloat16(model) and (provider == "cpu" or cuda_problem() is not None)

    def open(self, model: onnx.ModelProto, path: Path | None = None, folder: Path | None = None) -> Session:
        """A session over a model that lies at `path`, or only in memory with its data in `folder`.

        Raises:
            InputError: ONNX Runtime cannot load it, or the provider is not there.
        """
        folder = folder or (path.parent if path is not None else self.folder)
        try:
            if self.upcast:
                loaded = onnx.ModelProto()
                loaded.CopyFrom(model)
                load_data(loaded, folder)
                return session(upcast(loaded).SerializeToString(), self.provider, **_OPTIONS)
            if path is not None:
                return session(path, self.provider, **_OPTIONS)
            return session(model.SerializeToString(), self.provider, folder=folder, **_OPTIONS)
        except InputError as error:
            if "cannot load" not in str(error):
                raise
            raise InputError(f"ONNX Runtime cannot load the model: {_reason(error)}.") from error

    def run(self, opened: Session, names: Sequence[str], arrays: Arrays) -> list[np.ndarray[Any, Any]]:
        """The values `names`; of `arrays`, the ones that the session reads are given to it.

        Raises:
            InputError: The model fails on them.
        """
        feed = {each.name: arrays[each.name] for each in opened.get_inputs()}
        if self.upcast:
            feed = {n: a.astype(np.float32) if a.dtype.name == "bfloat16" else a for n, a in feed.items()}
        try:
            return list(opened.run(list(names), feed))
        except FxfuseError:
            raise
        except Exception as error:  # onnxruntime's errors share no narrower base
            raise InputError(f"ONNX Runtime fails on the measuring inputs: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """What ONNX Runtime says, without its codes and the place in its source."""
    text = re.sub(r".*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(str(error)))
    text = re.sub(r"^/\S+:\d+ .*?\) (?=[A-Z])", "", text)
    return text.removeprefix("This is an invalid model. ").removeprefix("Error: ").strip().rstrip(".")
