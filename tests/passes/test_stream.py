"""The residual stream: which adds update it, what its branches hold, where it begins and forks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.passes.branches import Branches
from fxfuse.passes.records import Norm
from fxfuse.passes.stream import read_streams
from fxfuse.passes.view import View
from tests.passes import onnx_graphs
from tests.passes.graphs import HIDDEN, TRACERS, Layer, Spec, Stack, example, symbolic


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v))


class Net(nn.Module):
    """`write(self, x)` over a few parts; `y` is a second input of the same shape."""

    def __init__(self, write: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.write = write
        self.a, self.b = Layer(), Layer()
        self.attention = Attention()
        self.norm, self.other = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.mixing = nn.Linear(HIDDEN, HIDDEN)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> object:
        x, self.y = x.chunk(2, 1)
        return self.write(self, x)


def kinds(view: View) -> list[list[str]]:
    """For every stream, what each update adds."""
    streams = read_streams(view)
    branches = Branches(view, streams)
    return [
        [" + ".join(part.kind for part in branches.read(stream, update)) for update in stream.updates]
        for stream in streams
    ]


def read(write: Callable[[Any, Tensor], object]) -> list[list[str]]:
    return kinds(symbolic(Net(write), example(length=6), shapes=True))


@pytest.mark.parametrize("tracer", TRACERS)
def test_attention_and_ffns_in_order(tracer: str) -> None:
    """x + attention(norm(x)), then two FFNs"""
    net = Net(lambda m, x: m.b(m.a(x + m.attention(m.norm(x)))))
    assert kinds(TRACERS[tracer](net, example(length=6))) == [["attention", "ffn", "ffn"]]


def test_the_stream_passes_through_norms_and_constants() -> None:
    """post-norm: y = norm(x + f(x)), then 0.5 (y + g(y)), then one more"""

    def write(m: Net, x: Tensor) -> object:
        y = m.norm(x + m.attention(x))
        z = 0.5 * m.other(y + m.a.mlp(y))
        return z + m.b.mlp(z)

    view = symbolic(Net(write), example(length=6), shapes=True)
    (stream,) = read_streams(view)
    assert kinds(view) == [["attention", "ffn", "ffn"]]
    between = [[type(each) is Norm for each in update.between] for update in stream.updates]
    assert between == [[], [True], [True]]  # the norm takes the multiplier with it


def test_parts_of_a_sum_are_told_apart() -> None:
    """x + (attention(h) + mlp(h)); (x + attention(h)) + mlp(h)"""

    def one_add(m: Net, x: Tensor) -> object:
        h = m.norm(x)
        return x + (m.attention(h) + m.a.mlp(h))

    def two_adds(m: Net, x: Tensor) -> object:
        h = m.norm(x)
        return x + m.attention(h) + m.a.mlp(h)

    assert read(one_add) == [["attention + ffn"]]
    assert read(two_adds) == [["attention", "ffn"]]


def test_an_add_inside_a_branch_is_taken_back() -> None:
    """z = x + mlp(y + attention(y)) of y = norm(x): one update of x, and a stream of its own inside"""

    def write(m: Net, x: Tensor) -> object:
        y = m.norm(x)
        return m.b(x + m.a.mlp(y + m.attention(y)))

    assert read(write) == [["attention"], ["attention", "ffn"]][::-1]


def test_two_streams() -> None:
    """the second begins at another value, and reads the first as a memory"""

    def write(m: Net, x: Tensor) -> object:
        memory = m.b(m.a(x))
        y = m.mixing(m.y)
        q = m.norm(y)
        return m.a(y + F.scaled_dot_product_attention(q, m.mixing(memory), memory))

    found = read(write)
    assert found == [["ffn", "ffn"], ["attention", "ffn"]]


def test_a_fork_is_a_stream_of_its_own() -> None:
    """two readers of one state"""
    assert read(lambda m, x: (m.a(m.b(x)), m.a(x))) == [["ffn", "ffn"], ["ffn"]]


@pytest.mark.parametrize(
    "write",
    [
        lambda m, x: x + 0.044715 * x**3,
        lambda m, x: m.mixing(x) + m.norm(x),
        lambda m, x: x + m.mixing(m.y),
        lambda m, x: m.mixing(x) + 1.0,
    ],
)
def test_what_is_no_update(write: Callable[[Any, Tensor], object]) -> None:
    assert read(write) == []


def test_a_value_from_elsewhere_is_an_update_with_an_empty_branch() -> None:
    """a bias per layer that is computed from something else than the stream"""

    def write(m: Net, x: Tensor) -> object:
        return m.a(m.b(x) + m.mixing(m.y))

    assert read(write) == [["ffn", "other", "ffn"]]


def test_an_update_hidden_in_a_gemm() -> None:
    """Gemm(inner, down, x) is inner @ down + x"""
    graph = onnx_graphs.Graph()
    block = graph.new_block()
    h = graph.node("Relu", graph.node("MatMul", graph.rms("x", block), graph.weight(block.gate)))
    out = graph.node("Gemm", h, graph.weight(block.down), "x")
    assert kinds(onnx_graphs.view_of(graph.model(out))) == [["ffn"]]


class Counting:
    """A view that counts the operators that are looked up."""

    def __init__(self, view: View) -> None:
        self.view, self.count = view, 0

    def op(self, value: Any) -> Any:
        self.count += 1
        return self.view.op(value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.view, name)


def test_reading_is_linear() -> None:
    """Ten times the blocks are ten times the look-ups."""
    counts = []
    for layers in (5, 50):
        view = Counting(symbolic(Stack([Spec(width=2)] * layers), example(), shapes=True))
        assert [len(each) for each in kinds(view)] == [layers]  # type: ignore[arg-type]
        counts.append(view.count)
    assert counts[1] < 11 * counts[0]
