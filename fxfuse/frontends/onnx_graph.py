"""The one way from an ONNX model to a graph that can be read: fusing, inspecting and splitting start here."""

from __future__ import annotations

from pathlib import Path

import onnx

from fxfuse.onnxio import infer_shapes, read_tensor
from fxfuse.passes.onnx.view import OnnxView

__all__ = ["read_graph"]


def read_graph(model: onnx.ModelProto, folder: Path) -> OnnxView:
    """A view of `model` with its external data in `folder`; shapes that are missing are inferred."""
    return OnnxView(infer_shapes(model), lambda tensor: read_tensor(tensor, folder))
