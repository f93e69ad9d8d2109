"""Weights that bodies bring to the graph around them; equal ones of two bodies are stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx.external_data_helper import uses_external_data

from fxfuse.external import pieces
from fxfuse.passes.onnx.reserved import reread

__all__ = ["add_weights", "share_weights"]


def add_weights(model: onnx.ModelProto, tensors: Iterable[onnx.TensorProto], folder: Path) -> None:
    """Store `tensors`, whose external data lie in `folder`, in a model whose own lie elsewhere."""
    for tensor in tensors:
        added = model.graph.initializer.add()
        added.CopyFrom(tensor)
        for entry in added.external_data:
            if entry.key == "location":
                entry.value = str(folder.resolve() / entry.value)


def share_weights(model: onnx.ModelProto, before: onnx.ModelProto, folder: Path) -> dict[str, str]:
    """Keep one of the weights that are equal among those that `before` does not have; changes `model`.

    Returns for every other one the name of that which is read instead of it.
    """
    old = {tensor.name for tensor in before.graph.initializer}
    first: dict[tuple[object, ...], str] = {}
    same: dict[str, str] = {}
    kept = []
    for tensor in model.graph.initializer:
        if tensor.name not in old:
            name = first.setdefault(_fingerprint(tensor, folder), tensor.name)
            if name != tensor.name:
                same[tensor.name] = name
                continue
        kept.append(tensor)
    if same:
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del model.graph.initializer[:]
        model.graph.initializer.extend(copies)
        reread(model.graph, same)
    return same


def _fingerprint(tensor: onnx.TensorProto, folder: Path) -> tuple[object, ...]:
    digest = hashlib.sha256()
    if uses_external_data(tensor):
        for piece in pieces(tensor, folder):
            digest.update(piece)
    else:
        digest.update(onnx.numpy_helper.to_array(tensor).tobytes())
    return tensor.data_type, tuple(tensor.dims), digest.digest()
