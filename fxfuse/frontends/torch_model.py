"""Torch models as users have them: an nn.Module, exported once with open shapes, or their own graph."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from fxfuse.errors import InputError
from fxfuse.frontends.exported import ExportedGraph
from fxfuse.frontends.protocol import Batch
from fxfuse.frontends.torch_graph import TorchGraph
from fxfuse.quiet import quiet

__all__ = ["export_module", "read_torch"]

_TRACER = "torch._subclasses.fake_tensor"
"""The logger that prints a traceback for an operator that cannot run on these shapes."""


def read_torch(model: nn.Module | ExportedProgram, batch: Batch) -> TorchGraph:
    """A front end over a torch model and one batch of its inputs.

    Raises:
        InputError: The model is in training mode, or cannot be exported with this batch.
    """
    batch = _placed(model, batch)
    if isinstance(model, ExportedProgram):
        return ExportedGraph(model, list(batch.values()))
    if isinstance(model, fx.GraphModule):
        return TorchGraph(model, list(batch.values()), {})
    if not isinstance(model, nn.Module):
        raise InputError(
            f"A torch model must be an nn.Module or ExportedProgram, not {type(model).__name__}."
        )
    return ExportedGraph(export_module(model, batch), list(batch.values()))


def export_module(model: nn.Module, batch: Batch) -> ExportedProgram:
    """`model(**batch)` as torch.export's program, open in batch and sequence where the model allows it.

    The inputs' names are the arguments' names; a batch that has none of these is passed by position. Models
    of transformers are exported without a cache, so that they return logits alone.

    Raises:
        InputError: The model is in training mode, or torch.export cannot capture it.
    """
    if model.training:
        raise InputError("The model is in training mode: call model.eval() first.")
    args, kwargs = _arguments(model, _placed(model, batch))
    failure: Exception | None = None
    for open_axes in (True, False):
        try:
            with torch.no_grad(), _without_cache(model), quiet(_TRACER), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.export.export(
                    model, args, kwargs, dynamic_shapes=_shapes(args, kwargs, open_axes), strict=False
                )
        except Exception as error:  # torch.export raises many kinds
            failure = error
    first = (str(failure).strip().splitlines() or [type(failure).__name__])[0].rstrip(".")
    raise InputError(
        f"torch.export cannot capture the model ({first}): check that it runs on the calibration data."
    ) from failure


def _placed(model: nn.Module | ExportedProgram, batch: Batch) -> Batch:
    """The batch on the device of the model's weights."""
    state = model.state_dict if isinstance(model, ExportedProgram) else model.state_dict()
    device = next((each.device for each in state.values() if isinstance(each, torch.Tensor)), None)
    if device is None:
        return batch
    return {name: each.to(device) if isinstance(each, torch.Tensor) else each for name, each in batch.items()}


@contextlib.contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Keep a model of transformers from returning a cache, while the context lasts."""
    config = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before:
        config.use_cache = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        if before:
            config.use_cache = before  # type: ignore[union-attr]


def _arguments(model: nn.Module, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = inspect.signature(model.forward).parameters
    if all(name in names for name in batch):
        return (), dict(batch)
    return tuple(batch.values()), {}


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any], open_axes: bool) -> Any:
    """Batch and sequence of every input left open, for torch.export to hold or to fix."""
    if not open_axes:
        return None

    def axes(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() < 1:
            return None
        return dict.fromkeys(range(min(2, value.dim())), Dim.AUTO)

    return tuple(map(axes, args)) if args and not kwargs else {name: axes(v) for name, v in kwargs.items()}
