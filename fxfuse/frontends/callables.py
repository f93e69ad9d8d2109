"""Torch models that a Python function makes: module:function, called, and captured as graphs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.export import ExportedProgram

from fxfuse.errors import InputError
from fxfuse.frontends.dynamo_graph import DynamoGraph
from fxfuse.frontends.exported import ExportedGraph
from fxfuse.passes.fx.view import FxView

__all__ = ["call_maker", "capture"]


def call_maker(module: str, function: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """What `module:function` returns: a model, its example inputs, and its keyword arguments if any.

    Raises:
        InputError: There is no such function, it fails, or it returns something else.
    """
    place = f"{module}:{function}"
    maker: Any = _load(module)
    for part in function.split("."):
        maker = getattr(maker, part, None)
    if not callable(maker):
        raise InputError(f"There is no function {function} in {module}: check the name.")
    try:
        made = maker()
    except Exception as error:
        raise InputError(f"{place} failed ({_first_line(error)}): call it by itself to see where.") from error
    if (
        not isinstance(made, (tuple, list))
        or not 2 <= len(made) <= 3
        or not callable(made[0])
        and not isinstance(made[0], ExportedProgram)
    ):
        raise InputError(
            f"{place} must return a model and a tuple of its example inputs, not {type(made).__name__}."
        )
    model, inputs, *more = made
    args = inputs if isinstance(inputs, (tuple, list)) else () if isinstance(inputs, Mapping) else (inputs,)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    if more and not isinstance(more[0], Mapping):
        raise InputError(f"The third thing that {place} returns must be a dict of keyword arguments.")
    return model, tuple(args), kwargs | dict(more[0] if more else {})


def capture(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[FxView], str | None]:
    """The graphs that torch.compile makes of a call, torch.export's where it makes none; and a note on them.

    Raises:
        InputError: Neither can capture the model.
    """
    if isinstance(model, ExportedProgram):
        return [ExportedGraph(model, args).view], None
    if isinstance(model, torch.nn.Module):
        model.eval()
    views: list[FxView] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        views.append(DynamoGraph(graph, inputs).view)
        return graph.forward

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of dynamo, about what it leaves out of the graph
            compiled: Any = torch.compile(model, backend=backend)
            compiled(*args, **kwargs)
    except Exception as error:
        return _exported(
            model, args, kwargs, error
        ), "torch.compile cannot capture the model: as torch.export does"
    if not views:
        raise InputError(
            "torch.compile found no graph in the model: give a model that computes with tensors."
        )
    broken = len(views) > 1
    note = f"torch.compile breaks this model into {len(views)} graphs, and no chain runs across a break"
    return views, note if broken else None


def _exported(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], cause: Exception) -> list[FxView]:
    try:
        with torch.no_grad():
            program = torch.export.export(model, tuple(args), dict(kwargs), strict=False)
        return [ExportedGraph(program, _flat(args, kwargs)).view]
    except Exception:
        raise InputError(
            f"The model cannot be captured ({_first_line(cause)}): check that it runs on its example inputs."
        ) from cause


def _flat(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    return [*args, *kwargs.values()]


def _load(module: str) -> ModuleType:
    """Import a module as `python -m` would, from the folder at hand; a file by its path."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        if module.endswith(".py"):
            return _load_file(Path(module))
        return importlib.import_module(module)
    except Exception as error:
        raise InputError(
            f"{module} cannot be imported ({_first_line(error)}): check the name and the path."
        ) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"There is no file {path}: check the path.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
