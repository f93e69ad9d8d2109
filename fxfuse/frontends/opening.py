"""Open a model, in whatever form a user has it, as a graph that runs on calibration batches."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import fx, nn
from torch.export import ExportedProgram

from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Runnable
from fxfuse.progress import Progress, silent
from fxfuse.sessions import Provider
from fxfuse.specs import InputSpec, specs_of

if TYPE_CHECKING:
    from fxfuse.calibration import Calibration

__all__ = [
    "Model", "calibration_for", "is_checkpoint", "is_onnx", "load_torch", "model_name", "open_model",
]  # fmt: skip

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
    if is_onnx(model):
        with _onnx(Path(model), calibration, provider) as front:  # type: ignore[arg-type]
            yield front
        return
    if isinstance(model, (str, os.PathLike)):
        model = load_torch(os.fspath(model))
    yield _torch(model, calibration)


def calibration_for(model: Model, data: Any, progress: Progress = silent, **reading: Any) -> Calibration:
    """Calibration data for `model`: sizes that an ONNX file fixes are the defaults of how they are cut.

    Args:
        model: What is opened later.
        data: What `Calibration.of` takes.
        progress: Called with a short text at every step.
        reading: What it takes besides.

    Raises:
        InputError: The data cannot be read, or hold no batch of the size that the model fixes.
    """
    from fxfuse.calibration import Calibration
    from fxfuse.calibration.complete import fixed_sizes

    if isinstance(data, Calibration) or not is_onnx(model):
        return Calibration.of(data, progress=progress, **reading)
    count, length = fixed_sizes(_specs(model))
    sizes = {"batch_size": count, "context": length}
    fixed = {name: size for name, size in sizes.items() if size is not None}
    found = Calibration.of(data, progress=progress, **(fixed | reading))
    return found if count is None else _whole(found, count)


def is_onnx(model: Model) -> bool:
    """Whether a model is given as the path of an ONNX file."""
    return isinstance(model, (str, os.PathLike)) and Path(model).suffix == ".onnx"


def is_checkpoint(model: Model) -> bool:
    """Whether a model is given as the folder of a checkpoint."""
    return isinstance(model, (str, os.PathLike)) and Path(model).is_dir()


def model_name(model: Model) -> str:
    """What to call a model in a report: its path, or the name of its class."""
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__


def _specs(model: Any) -> list[InputSpec]:
    from fxfuse.onnxio import load_model

    return specs_of(load_model(model)[0])


def _whole(calibration: Calibration, count: int) -> Calibration:
    """Without batches that hold fewer windows than the model takes."""
    fit, held_out = (
        tuple(batch for batch in part if len(next(iter(batch.values()))) == count)
        for part in (calibration.fit, calibration.held_out)
    )
    if not fit or not held_out:
        raise InputError(
            f"The model takes {count} windows at a time, and the data give fewer to fit on or to hold out: "
            "give more data."
        )
    return replace(calibration, fit=fit, held_out=held_out)


@contextlib.contextmanager
def _onnx(path: Path, calibration: Calibration, provider: Provider) -> Iterator[Runnable]:
    from fxfuse.frontends.onnx_file import OnnxFile, vocab_size
    from fxfuse.onnxio import load_model

    model, folder = load_model(path)
    _check(calibration, vocab_size(model))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as workspace:
        yield OnnxFile(model, folder, [], Path(workspace), path.name, provider)


def _torch(model: Any, calibration: Calibration) -> Runnable:
    from fxfuse.frontends.torch_inputs import check_sizes, embedding_rows
    from fxfuse.frontends.torch_model import read_torch

    front = read_torch(model, calibration.fit[0])
    check_sizes(front, calibration.fit[0])
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
