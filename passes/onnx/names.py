"""The layer path of an ONNX node or weight, from whatever its exporter and optimisers left behind."""

from __future__ import annotations

import re

import onnx

__all__ = ["scope_of"]

_PREFIX = re.compile(r"(InsertedPrecisionFreeCast_|FusedBack_|graph_input_cast_)+")
"""What ONNX Runtime puts before the names of weights that it cast."""
_FUSION = re.compile(r"(/\w*Fusion)+/?$")
"""And after the names of nodes that it fused."""
_ROLES = ("weight", "bias", "MatMul", "qweight", "gamma", "beta", "kernel", "scale")


def scope_of(node: onnx.NodeProto | None, *weights: str) -> str:
    """The dotted module path of `node`; from the names of its `weights` where the node itself does not tell.

    torch.onnx.export writes it as metadata ("namespace": ": Model/layers.0: Layer/linear: aten.linear"), the
    older exporter and onnxruntime-genai as the node's name ("/model/layers.0/mlp/down_proj/MatMul").
    """
    if node is not None:
        for entry in node.metadata_props:
            if entry.key == "namespace":
                paths = [part.partition(": ")[0] for part in entry.value.split("/")]
                return paths[-2] if len(paths) > 1 else ""
        name = _FUSION.sub("", node.name)
        if name.startswith("/") and name.count("/") > 1:
            return ".".join(name.strip("/").split("/")[:-1])
    return next(filter(None, map(_of_weight, weights)), "")


def _of_weight(name: str) -> str:
    """The path in "layers.0.mlp.up_proj.weight" or "model/layer_0/dense/kernel:0"; "" in other names."""
    plain = _PREFIX.sub("", name)
    stem, _, last = plain.rpartition("." if "." in plain else "/")
    return stem.strip("/").replace("/", ".") if last.startswith(_ROLES) else ""
