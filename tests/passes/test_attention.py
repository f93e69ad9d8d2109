"""Updates of the residual stream as records; which attentions can be left out, and why others cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.frontends.exported import ExportedGraph
from fxfuse.passes.attention import find_attention, layer_numbers, stream_updates
from fxfuse.passes.fx.view import FxView
from tests import families
from tests.passes.graphs import HIDDEN, Layer, example, symbolic

HEADS = 2


class Attention(nn.Module):
    """Self attention, or cross attention where `memory` is given; `taps` are what it computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def forward(self, h: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = h if memory is None else memory
        q, k, v = (
            product(each).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for product, each in ((self.q, h), (self.k, memory), (self.v, memory))
        )
        weights = (q @ k.transpose(2, 3)).softmax(-1)
        self.taps = {"k": k, "v": v, "weights": weights, "q": q}
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Net(nn.Module):
    """`write(self, x)` over a few parts."""

    def __init__(self, write: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.write = write
        self.a, self.b = Layer(), Layer()
        self.attention, self.second = Attention(), Attention()
        self.norm, self.other = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.mixing, self.router = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 3 * HIDDEN)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> object:
        return self.write(self, x)


def view_of(write: Callable[[Any, Tensor], object]) -> FxView:
    return symbolic(Net(write), example(length=6), shapes=True)


def why(write: Callable[[Any, Tensor], object]) -> str:
    """The only miss's reason."""
    found, (miss,) = find_attention(view_of(write))
    assert found == []
    return miss.reason


# -- updates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe", "vit"])
def test_updates_of_a_model_in_order(family: str, exported_program: Any) -> None:
    """attention, FFN, attention, FFN, ...: by layer path, each from the state that the one before left."""
    program = exported_program(family, removed=(1,))
    updates = stream_updates(ExportedGraph(program, (families.example(family),)).view)
    assert [each.layer for each in updates] == [0, 0, 1, 2, 2, 3, 3, 4, 4]
    kinds = [each.kind for each in updates]
    assert kinds[:5] == ["attention", "ffn", "ffn", "attention", "ffn"]
    assert set(kinds[5:]) <= {"attention", "ffn", "experts"}
    record = families.FAMILIES[family]
    last = [each.name.rpartition(".")[2] for each in updates[:3]]
    assert last == [record.attention, record.ffn, record.ffn]
    assert len({each.name for each in updates}) == 9


def test_kinds_of_updates() -> None:
    """One add for attention and FFN; attention of a memory; something else; a module called twice."""

    def write(m: Net, x: Tensor) -> object:
        memory = m.mixing(m.router(x)[..., :HIDDEN])
        y = m.b(m.a(m.a(x)))
        h = m.norm(y)
        y = y + (m.attention(h) + m.b.mlp(h))
        y = y + torch.tanh(m.mixing(m.other(y)))
        return y + m.second(m.norm(y), memory.detach())

    updates = stream_updates(view_of(write))
    kinds = [each.kind for each in updates]
    assert kinds[:5] == ["ffn", "ffn", "ffn", "attention + ffn", "other"]
    assert [each.name for each in updates[:3]] == ["a.mlp#1", "a.mlp#2", "b.mlp"]
    assert all(each.layer is None for each in updates)
    assert updates[3].x == updates[2].out


def test_a_graph_without_a_stream() -> None:
    view = view_of(lambda m, x: m.mixing(x))
    assert stream_updates(view) == []
    assert find_attention(view) == ([], [])


def test_layer_numbers() -> None:
    """The first number at a place where numbers differ."""
    assert layer_numbers(["model.layers.0.attn", "model.layers.1.attn"]) == [0, 1]
    assert layer_numbers(["block.0.layer.0.attn", "block.1.layer.0.attn"]) == [0, 1]
    assert layer_numbers(["towers.0.layers.3.attn", "towers.0.layers.4.attn"]) == [3, 4]
    assert layer_numbers(["h.7.attn"]) == [7]
    assert layer_numbers(["node_add_1", "h.3.attn"]) == [None, 3]


# -- attentions ------------------------------------------------------------------------------------


def test_an_attention_can_be_left_out() -> None:
    """x + attention(norm(x)): x and out are the stream before and after it"""
    view = view_of(lambda m, x: m.b(_step(m, m.a(x))))
    ((attention,), misses) = find_attention(view)
    updates = stream_updates(view)
    assert misses == []
    assert (attention.name, attention.x, attention.out) == ("attention", updates[0].out, updates[1].out)
    assert attention.cache == ()
    assert attention.interior == updates[1].interior
    assert attention.x not in attention.interior
    assert attention.out not in attention.interior


def _step(m: Net, x: Tensor) -> Tensor:
    return x + m.attention(m.norm(x))


def test_a_norm_after_it_belongs_to_it() -> None:
    """x + norm(attention(norm(x))) (sandwich form), then an FFN"""
    view = view_of(lambda m, x: m.b(x + m.other(m.attention(m.norm(x)))))
    ((attention,), _) = find_attention(view)
    assert {"norm", "other"} <= {view.scope(value) for value in attention.interior}


def test_a_norm_that_an_ffn_reads_too_stays() -> None:
    """(x + attention(h)) + mlp(h), h = norm(x)"""

    def write(m: Net, x: Tensor) -> object:
        h = m.norm(x)
        return m.b(x + m.attention(h) + m.a.mlp(h))

    ((attention,), misses) = find_attention(view_of(write))
    assert (attention.name, misses) == ("attention", [])


def test_keys_and_values_may_be_outputs() -> None:
    """They are the attention's cache, also where they are computed with what came before."""

    def write(m: Net, x: Tensor) -> object:
        out = m.b(_step(m, x))
        taps = m.attention.taps
        return out, taps["k"], torch.cat([taps["v"], taps["v"]], 2)

    view = view_of(write)
    ((attention,), misses) = find_attention(view)
    assert misses == []
    assert len(attention.cache) == 2
    assert all(view.is_output(each) for each in attention.cache)


# -- misses ----------------------------------------------------------------------------------------


def test_parallel_with_an_ffn() -> None:
    def write(m: Net, x: Tensor) -> object:
        h = m.norm(x)
        return m.b(x + (m.attention(h) + m.a.mlp(h)))

    assert why(write) == "it stands in parallel with the FFN: one residual add (add_1) takes both"


def test_parallel_with_something_else() -> None:
    def write(m: Net, x: Tensor) -> object:
        h = m.norm(x)
        return m.b(x + (m.attention(h) + m.mixing(h)))

    assert why(write) == "it stands in parallel with another branch: one residual add (add_1) takes both"


def test_post_norm(exported_program: Any) -> None:
    """norm(x + attention(x)), as BERT writes it"""
    found, misses = find_attention(
        ExportedGraph(exported_program("bert", removed=()), (families.ids(),)).view
    )
    assert found == []
    assert len(misses) == 5
    assert misses[0].where == "encoder.layer.0.attention"
    assert misses[0].reason.startswith("the residual stream is normalised after its add add_")
    assert misses[0].reason.endswith("(post-norm form)")


def test_cross_attention() -> None:
    """Keys and values of another stream."""

    def write(m: Net, x: Tensor) -> object:
        memory, q = x.chunk(2, 1)
        memory = m.b(m.a(memory))
        return m.b(q + m.attention(m.norm(q), memory))

    reason = "it is cross attention, which brings in what another stream or input holds: it stays"
    assert why(write) == reason


def test_a_tap_that_is_an_output() -> None:
    """The attention's weights are returned, and so must be computed."""
    reason = why(lambda m, x: (m.b(_step(m, x)), m.attention.taps["weights"]))
    assert reason == "its value softmax is also a graph output"


def test_a_tap_that_something_reads() -> None:
    """A later layer takes this one's keys"""

    def write(m: Net, x: Tensor) -> object:
        x = m.b(_step(m, x))
        return x + m.mixing(m.attention.taps["q"].transpose(1, 2).flatten(2))

    found, misses = find_attention(view_of(write))
    reasons = [miss.reason for miss in misses]
    assert found == []
    assert any(reason.startswith("its value transpose is also read by") for reason in reasons)


def test_an_add_that_changes_the_type() -> None:
    """float16 + float32"""
    reason = why(lambda m, x: m.b(x.half() + m.attention(m.norm(x.half().float()))))
    assert reason == "its residual add add turns the stream from float16 into float32"


def test_cross_attention_of_an_input() -> None:
    """A decoder by itself, whose encoder's states are an input: projections of it are keys and values."""
    net = Net(lambda m, x: None)
    net.forward = lambda x, memory: net.b(x + net.attention(net.norm(x), F.relu(memory)))  # type: ignore[method-assign, assignment, misc]
    program = torch.export.export(net, (example(length=6), example(length=5)), strict=False)
    view = ExportedGraph(program, (example(length=6), example(length=5))).view
    assert [each.kind for each in stream_updates(view)] == ["cross attention", "ffn"]
