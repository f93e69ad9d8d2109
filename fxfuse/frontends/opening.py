"""Open a model, in whatever form a user has it, as a graph that runs on calibration batches."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import fx, nn
from torch.export import ExportedProgram

from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Runnable
from fxfuse.sessions import Provider

if TYPE_CHECKING:
    from fxfuse.calibration import Calibration

__all__ = ["Model", "load_torch", "model_name", "open_model"]

Model: TypeAlias = nn.Module | ExportedProgram | fx.GraphModule | str | os.PathLike[str]
"""A torch model, the path of an ONNX or .pt2 file, or "module:function" for a function that makes one."""

_CALLABLE = re.compile(r"(?P<module>[^:]*[^:\\/]):(?P<function>[A-Za-z_][\w.]*)")


@contextlib.contextmanager
def open_model(model: Model, calibration: Calibration, provider: Provider = "auto") -> Iterator[Runnable]:
    """The graph of `model`, ready to be run on the batches of `calibration`, while the context lasts.

    Of "module:function" only the model is taken: what it runs on are the calibration data.

    Raises:
        InputError: There is no such file or function, it cannot be read or exported, or the data hold tokens
            outside its vocabulary.
    """
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if path.suffix == ".onnx":
            with _onnx(path, calibration, provider) as front:
                yield front
            return
        model = load_torch(os.fspath(model))
    yield _torch(model, calibration)


def model_name(model: Model) -> str:
    """What to call a model in a report: its path, or the name of its class."""
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__


@contextlib.contextmanager
def _onnx(path: Path, calibration: Calibration, provider: Provider) -> Iterator[Runnable]:
    from fxfuse.frontends.onnx_file import OnnxFile, vocab_size
    from fxfuse.onnxio import load_model

    model, folder = load_model(path)
    _check(calibration, vocab_size(model))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as workspace:
        yield OnnxFile(model, folder, [], Path(workspace), path.name, provider)


def _torch(model: Any, calibration: Calibration) -> Runnable:
    from fxfuse.frontends.embedding import embedding_rows
    from fxfuse.frontends.torch_model import read_torch

    front = read_torch(model, calibration.fit[0])
    _check(calibration, embedding_rows(front))
    return front


def _check(calibration: Calibration, rows: int | None) -> None:
    from fxfuse.calibration.vocabulary import check_vocabulary  # which knows front ends' batches

    if rows is not None:
        check_vocabulary(calibration, rows)


def load_torch(text: str) -> nn.Module | ExportedProgram:
    """The torch model in a .pt2 file, or what `module:function` returns.

    Raises:
        InputError: There is no such file or function, or it holds no model.
    """
    from fxfuse.frontends.callables import call_maker
    from fxfuse.frontends.programs import load_program

    if text.endswith(".pt2"):
        return load_program(text)
    match = None if Path(text).exists() else _CALLABLE.fullmatch(text)
    if match is None:
        raise InputError(
            f"{text} is no model: give an .onnx file, a .pt2 file of torch.export, or module:function."
        )
    model = call_maker(match["module"], match["function"])[0]
    return model.eval() if isinstance(model, nn.Module) else model
