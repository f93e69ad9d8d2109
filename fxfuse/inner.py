"""The backend that compiles the rewritten graph, with mode and options passed on."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._dynamo.backends.registry import lookup_backend

from fxfuse.errors import InputError

__all__ = ["inner_backend"]

log = logging.getLogger("fxfuse")

Inner = str | Callable[..., Any]


def inner_backend(
    inner: Inner, mode: str | None, options: Mapping[str, Any] | None
) -> Callable[..., Callable[..., Any]]:
    """A function (module, inputs) -> callable of the inner backend, with mode and options passed on."""
    if inner == "inductor":
        return torch._TorchCompileInductorWrapper(mode, dict(options or {}), None)  # type: ignore[no-untyped-call]
    if isinstance(inner, str):
        inner = _lookup(inner)
    if not callable(inner):
        raise InputError(f"inner must be the name of a torch.compile backend or a callable, not {inner!r}.")
    keywords = {name: value for name, value in (("mode", mode), ("options", options)) if value}
    named = getattr(inner, "__name__", "")
    if keywords and named in ("eager", "aot_eager"):
        log.info("fxfuse: inner backend %s has no modes; %s is ignored", named, " and ".join(keywords))
        keywords = {}
    function = inner
    return lambda module, inputs: function(module, inputs, **keywords)


def _lookup(name: str) -> Callable[..., Any]:
    try:
        return lookup_backend(name)
    except Exception:
        near = difflib.get_close_matches(name, torch._dynamo.list_backends(None), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see torch._dynamo.list_backends()."
        raise InputError(f"There is no torch.compile backend {name!r} to use as inner: {hint}") from None
