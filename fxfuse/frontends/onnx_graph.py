"""The one way from an ONNX model to a graph that can be read: fusing, inspecting and splitting start here."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx_graphsurgeon.logger import G_LOGGER

from fxfuse.onnxio import inferred_shapes, read_tensor
from fxfuse.passes.collection import uncollected
from fxfuse.passes.onnx.expand import expand
from fxfuse.passes.onnx.view import OnnxView

__all__ = ["read_graph"]


def read_graph(model: onnx.ModelProto, folder: Path) -> OnnxView:
    """A view of `model` with its external data in `folder`.

    Shapes that are missing are inferred, and operators that hide several are written out: the view is of
    `expand(model).model`.
    """
    expanded = expand(model)
    # onnx-graphsurgeon prints, to stdout.
    with G_LOGGER.suppress(G_LOGGER.ERROR), inferred_shapes(expanded.model), uncollected():
        return OnnxView(expanded.model, lambda tensor: read_tensor(tensor, folder), expanded.whole)
