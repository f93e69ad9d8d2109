"""Which software a report was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from fxfuse._version import __version__

__all__ = ["versions"]

_PACKAGES = ("torch", "onnx", "onnx-graphsurgeon", "onnxruntime-gpu", "onnxruntime", "numpy")


def versions() -> dict[str, str]:
    """Package names and the versions that are installed."""
    found = {"fxfuse": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
