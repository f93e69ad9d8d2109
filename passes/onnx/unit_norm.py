"""The norm that a wide FFN reads: without a gain, as the model spells it or as one operator."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from fxfuse.passes.onnx.view import OnnxView
from fxfuse.passes.onnx.writer import Writer, cast, cast_to, numpy_dtype
from fxfuse.passes.records import Block
from fxfuse.passes.view import strip

__all__ = ["unit_norm"]


def unit_norm(view: OnnxView, writer: Writer, first: Block, operator: str = "own") -> gs.Tensor:
    """The first block's norm without its gain, in the type of its weights; an RMSNorm as `operator`."""
    norm = first.norm
    if norm.kind == "rms" and operator != "own":
        return _operator_norm(view, writer, first, operator)
    if norm.unit is not None:
        return cast_to(view, writer, str(norm.unit), first.dtype, "norm_cast")
    node = view.tensors[str(norm.operator)].inputs[0]
    kind = view.dtype(node.inputs[1].name) or first.dtype
    ones = writer.constant("unit_gain", np.ones(first.hidden_size, numpy_dtype(kind)))
    like = view.tensors[str(norm.operator)]
    tensor = writer.node(node.op, [node.inputs[0], ones], "norm", like, domain=node.domain, **node.attrs)
    known = view.dtype(norm.operator)
    return tensor if known in (None, first.dtype) else cast(writer, tensor, "norm_cast", first.dtype)


def _operator_norm(view: OnnxView, writer: Writer, first: Block, operator: str) -> gs.Tensor:
    """One operator of ONNX's own domain, which computes in float32 whatever it reads."""
    norm = first.norm
    stream = strip(view, norm.source)
    source = stream if view.dtype(stream) == first.dtype else norm.source
    kind = view.dtype(source) or first.dtype
    gain = writer.constant("unit_gain", np.full(first.hidden_size, norm.scale, numpy_dtype(kind)))
    x = view.tensors[str(source)]
    tensor = writer.node(operator, [x, gain], "norm", x, axis=-1, epsilon=float(norm.eps))
    return tensor if kind == first.dtype else cast(writer, tensor, "norm_cast", first.dtype)
