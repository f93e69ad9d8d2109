"""ONNX Runtime sessions: CUDA where it can really be had, the CPU otherwise and said so in one line."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .errors import FxfuseError, InputError
from .runtime import CPU, CUDA, cuda_problem, load_onnxruntime, one_line

__all__ = [
    "Model",
    "Provider",
    "Session",
    "nodes_off_cuda",
    "provider_name",
    "session",
]

Provider: TypeAlias = Literal["auto", "cuda", "cpu"]
Model: TypeAlias = "str | os.PathLike[str] | bytes"
Session: TypeAlias = Any  # onnxruntime.InferenceSession: the package carries no types

RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"

log = logging.getLogger("fxfuse")


def session(
    model: Model,
    provider: Provider = "auto",
    *,
    folder: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
    cuda_options: Mapping[str, str] | None = None,
) -> Session:
    """Open an ONNX model for running.

    Args:
        model: Path of the file, or the serialized model.
        provider: "auto" takes CUDA where it works and says in one log line where it does not.
        folder: Where the external data of a model given as bytes lie.
        threads: Threads inside an operator; None leaves the choice to ONNX Runtime.
        options: Attributes of `SessionOptions` by name; a name with a dot is a session config entry.
        cuda_options: Options of the CUDA execution provider, as in `{"use_tf32": "0"}`.

    Raises:
        InputError: "cuda" is asked for and not available, or ONNX Runtime cannot load the model.
    """
    if provider not in ("auto", "cuda", "cpu"):
        raise InputError(f"There is no provider {provider!r}: choose auto, cuda or cpu.")
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise InputError(f"There is no model file {os.fspath(model)}: check the path.")
    create = functools.partial(_create, model, _session_options(folder, threads, options))
    if provider == "cpu":
        return create([CPU])
    with_cuda = [(CUDA, dict(cuda_options or {})), CPU]
    return _create_on_cuda(create, with_cuda) if provider == "cuda" else _create_on_best(create, with_cuda)


def provider_name(session: Session) -> str:
    """Name the provider that comes first in a session: "cuda", "cpu" or ONNX Runtime's own word."""
    first = str(session.get_providers()[0])
    return {CUDA: "cuda", CPU: "cpu"}.get(first, first)


def nodes_off_cuda(
    model: Session | Model, *, folder: str | os.PathLike[str] | None = None
) -> list[tuple[str, str]]:
    """List the nodes that do not run on CUDA as (node name, op type); all of them where there is no CUDA.

    Args:
        model: A session made by `session`, or a model to open with "auto".
        folder: Where the external data of a model given as bytes lie.

    Raises:
        FxfuseError: This ONNX Runtime, or this session, does not record where nodes land.
    """
    opened = session(model, folder=folder) if isinstance(model, (str, bytes, os.PathLike)) else model
    if not hasattr(opened, "get_provider_graph_assignment_info"):
        raise FxfuseError(
            "Which nodes run on CUDA can be read from onnxruntime 1.24 on: install a newer one."
        )
    try:
        parts = opened.get_provider_graph_assignment_info()
    except Exception as error:
        message = "This session does not record where its nodes run: open it with fxfuse.sessions.session."
        raise FxfuseError(message) from error
    return [(node.name, node.op_type) for part in parts if part.ep_name != CUDA for node in part.get_nodes()]


def _create(model: Model, options: Any, providers: list[Any]) -> Session:
    """Open the session; without onnxruntime's own fallback, which prints and hides the error."""
    runtime = load_onnxruntime()
    try:
        return runtime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's errors share no narrower base
        what = "the model in memory" if isinstance(model, bytes) else os.fspath(model)
        raise InputError(f"onnxruntime cannot load {what}: {one_line(str(error))}") from error


def _create_on_cuda(create: Callable[[list[Any]], Session], providers: list[Any]) -> Session:
    if problem := cuda_problem():
        raise InputError(
            f"CUDA was asked for and is not available ({problem}): install onnxruntime-gpu with the CUDA and "
            "cuDNN it needs and check that the GPU is visible, or choose the provider cpu."
        )
    opened = create(providers)
    if CUDA not in opened.get_providers():
        raise InputError(
            "CUDA was asked for and onnxruntime opened the model without it: choose the provider cpu."
        )
    return opened


def _create_on_best(create: Callable[[list[Any]], Session], providers: list[Any]) -> Session:
    problem = cuda_problem()
    if problem is None:
        try:
            return create(providers)
        except InputError as error:
            problem = one_line(str(error))
    opened = create([CPU])
    _tell_once(problem)
    return opened


@functools.cache
def _tell_once(problem: str) -> None:
    log.warning("CUDA execution provider is not available (%s); running on CPU", problem)


def _session_options(
    folder: str | os.PathLike[str] | None, threads: int | None, options: Mapping[str, Any] | None
) -> Any:
    made = load_onnxruntime().SessionOptions()
    made.log_severity_level = 3  # errors: a warning about Memcpy nodes is what nodes_off_cuda tells
    made.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    if threads is not None:
        made.intra_op_num_threads = threads
    if folder is not None:
        made.add_session_config_entry(EXTERNAL_FOLDER, os.fspath(folder))
    for name, value in (options or {}).items():
        _set_option(made, name, value)
    return made


def _set_option(options: Any, name: str, value: Any) -> None:
    if "." in name:
        options.add_session_config_entry(name, str(value))
    elif hasattr(options, name):
        setattr(options, name, value)
    else:
        raise InputError(f"onnxruntime's SessionOptions have no {name!r}: check the name.")
