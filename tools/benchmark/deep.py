"""Very deep decoders of tiny FFN blocks, in memory: what finding costs does not depend on their width."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx
from torch.nn import functional as F

__all__ = ["deep_fx", "deep_onnx"]

HIDDEN, WIDTH = 8, 16


def deep_onnx(blocks: int) -> onnx.ModelProto:
    """A chain of gated FFNs with spelled-out RMSNorms: 13 nodes a block."""
    rng = np.random.default_rng(0)
    drawn = {
        "gain": rng.standard_normal(HIDDEN), "gate": rng.standard_normal((HIDDEN, WIDTH)),
        "up": rng.standard_normal((HIDDEN, WIDTH)), "down": rng.standard_normal((WIDTH, HIDDEN)),
    }  # fmt: skip
    stored = [numpy_helper.from_array(np.array(1e-6, np.float32), "eps")]
    stored.append(numpy_helper.from_array(np.array([-1]), "axes"))
    nodes: list[onnx.NodeProto] = []
    for index in range(blocks):
        path = f"model.layers.{index}.mlp"
        stored += [numpy_helper.from_array(v.astype(np.float32), f"{path}.{k}") for k, v in drawn.items()]
        nodes += _onnx_block(path, f"x{index}", f"x{index + 1}")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["s", HIDDEN]) for n in ("x0", f"x{blocks}")]
    graph = helper.make_graph(nodes, "deep", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _onnx_block(path: str, x: str, out: str) -> list[onnx.NodeProto]:
    steps = (
        ("Mul", "square", x, x), ("ReduceMean", "mean", "square", "axes"), ("Add", "safe", "mean", "eps"),
        ("Sqrt", "root", "safe"), ("Div", "unit", x, "root"), ("Mul", "norm", "unit", f"{path}.gain"),
        ("MatMul", "g", "norm", f"{path}.gate"), ("Sigmoid", "share", "g"), ("Mul", "silu", "g", "share"),
        ("MatMul", "u", "norm", f"{path}.up"), ("Mul", "inner", "silu", "u"),
        ("MatMul", "y", "inner", f"{path}.down"), ("Add", out, x, "y"),
    )  # fmt: skip
    own = {name: f"{path}/{name}" for _, name, *_ in steps if name != out}
    return [
        helper.make_node(
            op, [own.get(each, each) for each in inputs], [own.get(name, name)], f"{path}/{name}"
        )
        for op, name, *inputs in steps
    ]


def deep_fx(blocks: int) -> tuple[fx.GraphModule, dict[fx.Node, torch.Tensor]]:
    """The same chain as dynamo captures it, with its weights by placeholder: 7 calls a block."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    shapes = {"gain": (HIDDEN,), "gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    weights: dict[fx.Node, torch.Tensor] = {}
    places = []
    for index in range(blocks):
        places.append({name: graph.placeholder(f"layers_{index}_{name}") for name in shapes})
        weights |= {node: torch.ones(shapes[name]) for name, node in places[-1].items()}
    for place in places:
        norm = graph.call_function(F.rms_norm, (x, [HIDDEN], place["gain"], 1e-6))
        gate = graph.call_function(F.linear, (norm, place["gate"]))
        up = graph.call_function(F.linear, (norm, place["up"]))
        inner = graph.call_function(torch.mul, (graph.call_function(F.silu, (gate,)), up))
        x = graph.call_function(torch.add, (x, graph.call_function(F.linear, (inner, place["down"]))))
    graph.output((x,))
    return fx.GraphModule(torch.nn.Module(), graph), weights
