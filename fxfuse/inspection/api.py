"""Inspect an ONNX file, or a torch model that a Python function makes."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fxfuse.errors import InputError
from fxfuse.inspection.lines import inspect_view
from fxfuse.inspection.records import Inspection
from fxfuse.pipeline import Progress
from fxfuse.versions import versions

if TYPE_CHECKING:
    import onnx

__all__ = ["inspect_model"]

_CALLABLE = re.compile(r"(?P<module>[^:]*[^:\\/]):(?P<function>[A-Za-z_][\w.]*)")


def inspect_model(model: str | os.PathLike[str], *, progress: Progress = lambda _: None) -> Inspection:
    """Read the residual streams of a model.

    Args:
        model: An ONNX file, or "module:function" where the function takes no arguments and returns a torch
            model and a tuple of example inputs (and, if wanted, a dict of keyword arguments).
        progress: Called with a short text at every step.

    Returns:
        Streams, chains and reasons; `print` shows them.

    Raises:
        InputError: There is no such file or function, or its model cannot be read.
    """
    started, text = time.perf_counter(), os.fspath(model)
    match = None if Path(text).exists() or text.endswith(".onnx") else _CALLABLE.fullmatch(text)
    found = Inspection(text, "torch" if match else "onnx", versions=versions())
    if match:
        _read_torch(match["module"], match["function"], found, progress)
    else:
        _read_onnx(Path(text), found, progress)
    found.seconds = round(time.perf_counter() - started, 3)
    return found


def _read_onnx(path: Path, found: Inspection, progress: Progress) -> None:
    from fxfuse.onnxio import load_model

    progress("reading the model")
    model, folder = load_model(path)
    _read_graphs(model, folder, found, progress)


def _read_graphs(
    model: onnx.ModelProto, folder: Path, found: Inspection, progress: Progress, place: str = ""
) -> None:
    """The main graph, then the bodies of its If, Loop and Scan nodes, each as a graph of its own."""
    from fxfuse.frontends.onnx_graph import read_graph
    from fxfuse.onnxio import inferred_shapes
    from fxfuse.passes.onnx.bodies import bodies_of, hoist

    with _readable(found.model):
        view = read_graph(model, folder)
    progress(f"reading the residual stream{place}")
    own = Inspection(found.model, found.graph, chains=[()] * len(found.chains))
    inspect_view(view, own)
    if place:
        own = own.inside(place)
    found.streams += own.streams
    found.chains += own.chains[len(found.chains) :]
    found.places += own.places
    for body in bodies_of(model.graph):
        with _readable(found.model), inferred_shapes(model):
            hoisted = hoist(model, body)
        _read_graphs(hoisted.model, folder, found, progress, f" in {body.place}{place}")


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """What libraries raise on a graph that is none, as one sentence."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"{path} cannot be read as a graph ({first}): check the model.") from error


def _read_torch(module: str, function: str, found: Inspection, progress: Progress) -> None:
    from fxfuse.frontends.callables import call_maker, capture

    progress(f"calling {module}:{function}")
    model, args, kwargs = call_maker(module, function)
    progress("capturing the graph")
    views, note = capture(model, args, kwargs)
    found.notes += [note] if note else []
    progress("reading the residual stream")
    for view in views:
        inspect_view(view, found)
