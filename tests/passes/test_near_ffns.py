"""Why a branch with an FFN's products is no block, where no rule of the blocks says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.passes.blocks import match_block
from fxfuse.passes.branches import Branches
from fxfuse.passes.near_ffns import near_ffn
from fxfuse.passes.stream import read_streams
from fxfuse.passes.view import View
from tests.passes import onnx_graphs
from tests.passes.graphs import HIDDEN, Layer, Stack, example, find, reasons, symbolic


class Net(nn.Module):
    """x + write(self, norm(x))"""

    def __init__(self, write: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.write, self.norm = write, nn.RMSNorm(HIDDEN)
        self.one, self.two = nn.Linear(HIDDEN, 12, bias=False), nn.Linear(12, HIDDEN, bias=False)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.write(self, self.norm(x))


def why(view: View) -> str:
    """The reason for the only branch, which no rule of the blocks has one for."""
    (stream,) = read_streams(view)
    (update,) = stream.updates
    (branch,) = Branches(view, [stream]).read(stream, update)
    assert match_block(view, update.out) is None
    assert branch.kind == "ffn"
    return near_ffn(view, branch, update)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (
            lambda m, h: (
                torch.einsum("bsh,hdw->bswd", h, m.two.weight.view(HIDDEN, 3, 4)).flatten(2).relu()
                @ m.two.weight.T
            ),
            "its product einsum is einsum (2x3x8 with 8x3x4), not x times one stored matrix",
        ),
        (
            lambda m, h: m.two(F.silu(m.one(h)).cumsum(-1).flip(-1)),
            "between its products stands flip (flip)",
        ),
        (
            lambda m, h: m.two(F.silu(m.one(m.two(F.silu(m.one(h)))))) * torch.sigmoid(h),
            "its 4 products do not form down(act(gate) * up) of one norm (linear, linear_1, ",
        ),
    ],
)
def test_nearly_an_ffn(write: Callable[[Any, Tensor], Tensor], reason: str) -> None:
    assert reason in why(symbolic(Net(write), example(), shapes=True))


@pytest.mark.parametrize(
    ("scaled", "reason"),
    [
        (False, "the weight of n10 is not stored but computed outside: it is a graph input"),
        (True, "the weight of n11 is not stored but computed by mul"),
    ],
)
def test_a_weight_that_is_not_stored(scaled: bool, reason: str) -> None:
    graph = onnx_graphs.Graph()
    block = graph.new_block()
    h = graph.node("Relu", graph.node("MatMul", graph.rms("x", block), graph.weight(block.gate)))
    flat = graph.node("Reshape", h, graph.ints(-1, 12))
    weight = graph.node("Mul", "w", graph.weight(2.0)) if scaled else "w"
    f = graph.node("Reshape", graph.node("Gemm", flat, weight), graph.ints(2, 3, 8))
    model = graph.model(graph.node("Add", "x", f))
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [12, 8]))
    assert why(onnx_graphs.view_of(model)) == reason


def test_an_add_inside_a_gemm() -> None:
    """Gemm(inner, down, x) is inner @ down + x"""
    graph = onnx_graphs.Graph()
    block = graph.new_block()
    h = graph.node("Relu", graph.node("MatMul", graph.rms("x", block), graph.weight(block.gate)))
    out = graph.node("Gemm", h, graph.weight(block.down), "x")
    view = onnx_graphs.view_of(graph.model(out))
    node = graph.nodes[-1].name
    assert why(view) == f"the residual add is the bias of a product ({node})"


def written_over(y: Tensor) -> Tensor:
    y.add_(1.0)
    return y


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda x, f: written_over(x + f), "its residual add is an add that is written over (add_1)"),
        (lambda x, f: x.add_(f) + x, "its residual add is an add beside an in-place write (add_)"),
    ],
)
def test_an_add_and_an_in_place_write(write: Callable[[Tensor, Tensor], Tensor], reason: str) -> None:
    class Written(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return write(x, self.branch(x))

    found = find(Stack([Written()]))
    assert f"layers.0.mlp: {reason}" in reasons(found)
