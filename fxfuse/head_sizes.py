"""The head size of a cache whose inputs leave it open, read off the operators that take it.

    GroupQueryAttention(qkv [B, S, (heads + 2 kv_heads) size], , , past_key [B, kv_heads, T, "kv_cache_dim"])
    Concat(past_key [B, kv_heads, T, "kv_cache_dim"], key [B, kv_heads, S, size])

onnxruntime-genai's builder names that size instead of giving it, since a quantised cache packs it.
"""

from __future__ import annotations

import onnx

__all__ = ["head_sizes"]

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def head_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Sizes by the names of the inputs whose last axis they are; inputs that give their size are left out."""
    open_inputs = {value.name for value in model.graph.input if _is_open(value)}
    if not open_inputs:
        return {}
    widths, found = _widths(model.graph), dict[str, int]()
    for node in model.graph.node:
        past = [name for name in node.input if name in open_inputs]
        size = _size(node, widths) if past else None
        if size is not None:
            found |= dict.fromkeys(past, size)
    return found


def _size(node: onnx.NodeProto, widths: dict[str, int]) -> int | None:
    """The head size that a node which takes a cache gives away."""
    if node.op_type == "Concat":  # of the past and what is new
        return next((widths[name] for name in node.input if name in widths), None)
    if node.op_type != "GroupQueryAttention" or node.input[0] not in widths:
        return None
    known = {each.name: int(each.i) for each in node.attribute}
    heads = known["num_heads"] + (0 if node.input[1] else 2 * known["kv_num_heads"])
    return widths[node.input[0]] // heads if widths[node.input[0]] % heads == 0 else None


def _is_open(value: onnx.ValueInfoProto) -> bool:
    dims, kind = value.type.tensor_type.shape.dim, value.type.tensor_type.elem_type
    return kind in _FLOATS and len(dims) == 4 and not dims[3].HasField("dim_value")


def _widths(graph: onnx.GraphProto) -> dict[str, int]:
    """The last axes of values, as far as shapes and products tell them."""
    stored = {tensor.name: tensor.dims for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "MatMul" and len(stored.get(node.input[1], ())) == 2:
            found[node.output[0]] = int(stored[node.input[1]][1])
        if node.op_type == "MatMulNBits":
            found[node.output[0]] = next(int(each.i) for each in node.attribute if each.name == "N")
        if node.op_type in ("Add", "RotaryEmbedding") and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    for value in graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[-1].HasField("dim_value"):
            found[value.name] = int(dims[-1].dim_value)
    return found
