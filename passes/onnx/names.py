"""The layer path of an ONNX node, from whatever its exporter left behind."""

from __future__ import annotations

import onnx

__all__ = ["scope_of"]


def scope_of(node: onnx.NodeProto | None, weight: str) -> str:
    """The dotted module path of `node`; from the name of its `weight` where the node itself does not tell.

    torch.onnx.export writes it as metadata ("namespace": ": Model/layers.0: Layer/linear: aten.linear"), the
    older exporter and onnxruntime-genai as the node's name ("/model/layers.0/mlp/down_proj/MatMul").
    """
    if node is not None:
        for entry in node.metadata_props:
            if entry.key == "namespace":
                paths = [part.partition(": ")[0] for part in entry.value.split("/")]
                return paths[-2] if len(paths) > 1 else ""
        if node.name.startswith("/") and node.name.count("/") > 1:
            return ".".join(node.name.strip("/").split("/")[:-1])
    stem, _, last = weight.rpartition(".")
    return stem if last.startswith(("weight", "bias", "MatMul", "qweight")) else ""
