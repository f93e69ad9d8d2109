"""ONNX Runtime itself: imported without noise, and asked once per process whether CUDA really works.

onnxruntime-gpu on a machine without CUDA's libraries writes its complaints straight to the process's stderr
and then runs on the CPU without a word. Here a model of one node is run with stderr held back: it either
lands on CUDA, or the reason is read off what was written.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from types import ModuleType

from .errors import FxfuseError

__all__ = ["CPU", "CUDA", "cuda_problem", "load_onnxruntime", "one_line"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

log = logging.getLogger("fxfuse")


@functools.cache
def load_onnxruntime() -> ModuleType:
    """Import onnxruntime after torch, whose CUDA libraries it can use, and without its warnings on stderr.

    Raises:
        FxfuseError: It cannot be imported.
    """
    import torch  # noqa: F401

    problem: ImportError | None = None
    with hold_stderr() as written:
        try:
            runtime = importlib.import_module("onnxruntime")
        except ImportError as error:
            problem = error
    if problem is not None:
        reason = one_line(f"{problem} {written()}")
        raise FxfuseError(f"onnxruntime cannot be imported ({reason}): install it again.") from problem
    log.debug("onnxruntime wrote while it was imported: %r", written())
    return runtime


@functools.cache
def cuda_problem() -> str | None:
    """Say why CUDA cannot be used in this process, or None when a model really runs on it; tried once."""
    runtime = load_onnxruntime()
    if CUDA not in runtime.get_available_providers():
        return "this onnxruntime is built without CUDA"
    with hold_stderr() as written:
        try:
            works, raised = _try_cuda(runtime), ""
        except Exception as error:  # onnxruntime's errors share no narrower base
            works, raised = False, str(error)
    text = f"{raised}\n{written()}"
    log.debug("onnxruntime wrote while CUDA was tried: %r", text)
    return None if works else read_reason(text)


def _try_cuda(runtime: ModuleType) -> bool:
    import numpy as np

    _preload_libraries(runtime)
    probe = runtime.InferenceSession(_tiny_model(), providers=[CUDA, CPU], enable_fallback=0)
    probe.run(None, {"x": np.zeros(1, np.float32)})
    return CUDA in probe.get_providers()


def _preload_libraries(runtime: ModuleType) -> None:
    """Load CUDA's libraries from the installed packages, unheard: the probe tells what is missing."""
    if hasattr(runtime, "preload_dlls"):
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            runtime.preload_dlls()


def _tiny_model() -> bytes:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def read_reason(text: str) -> str:
    """Pick from what onnxruntime wrote the clause that names what is missing."""
    patterns = (
        r"with error: (.+)",
        r"(CUDA failure \d+: [^;\n]+)",
        r"(Require[s]? cuDNN .+?)\. Please",
        r"(\S.+)",
    )
    for pattern in patterns:
        if match := re.search(pattern, text):
            return one_line(match.group(1)).rstrip(".")
    return "onnxruntime gave no reason"


def one_line(text: str) -> str:
    """Take line breaks and terminal colours out of a message."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


@contextlib.contextmanager
def hold_stderr() -> Iterator[Callable[[], str]]:
    """Hold back what is written to file descriptor 2, libraries in C included; the call gives the text."""
    with contextlib.ExitStack() as stack:
        try:
            sys.stderr.flush()
            kept = os.dup(2)
            stack.callback(os.close, kept)
            held = stack.enter_context(tempfile.TemporaryFile())
        except (AttributeError, OSError, ValueError):  # no stderr, as under pythonw, or no room for a file
            yield lambda: ""
            return
        text: list[str] = []
        os.dup2(held.fileno(), 2)
        try:
            yield lambda: "".join(text)
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            held.seek(0)
            text.append(held.read().decode(errors="replace"))
