"""The rewritten graph computes the parallel sum, and nothing else has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.passes.chains import find_chains
from fxfuse.passes.fx.rewrite import remove_unread
from tests.passes.graphs import (
    HIDDEN,
    TRACERS,
    Layer,
    Spec,
    Stack,
    aten,
    core,
    dynamo,
    example,
    fuse,
    lengths,
    parallel,
    run,
    symbolic,
)

BASE = {
    "plain": Spec(),
    "operator": Spec(norm="rms_op", form="packed"),
    "layer": Spec(norm="layer_op", shift=True, bias=True, form="ungated", act="gelu"),
    "scaled": Spec(
        norm="layer", shift=True, layer_scale=True, multiplier=0.5, form="packed_turned", dropout=0.1
    ),
    "gemma": Spec(gain="plus_one", act="gelu tanh by hand", form="turned", add="f+x"),
}
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("name", BASE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_fused_graph_is_the_parallel_sum(tracer: str, name: str, dtype: torch.dtype) -> None:
    stack, x = Stack([BASE[name]] * 3, dtype), example(dtype)
    view = TRACERS[tracer](stack, x)
    result = run(fuse(view), x)
    assert result.dtype == dtype
    bound = TOLERANCE[dtype]
    torch.testing.assert_close(result.double(), parallel(stack, x), rtol=bound, atol=bound)


@pytest.mark.parametrize("tracer", ["symbolic", "dynamo", "core"])
@pytest.mark.parametrize("groups", [[(0, 1), (2, 3)], [(0, 1, 2), (3,)], [(1, 2)], [(0, 1), (2, 3, 4)]])
def test_groups_of_one_chain(tracer: str, groups: list[tuple[int, ...]]) -> None:
    """[x0, x1], [x2, x3]: the second group reads what the first gives"""
    count = 5
    stack, x = Stack([Spec(width=3 + index) for index in range(count)]), example()
    view = TRACERS[tracer](stack, x)
    blocks = find_chains(view).chains[0].blocks
    fused = fuse(view, [[blocks[index] for index in group] for group in groups if len(group) > 1])
    rest = set(range(count)) - {index for group in groups for index in group}
    everything = sorted([*groups, *((index,) for index in rest)])
    torch.testing.assert_close(run(fused, x).double(), parallel(stack, x, everything), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tracer", TRACERS)
def test_what_is_left_is_one_ffn(tracer: str) -> None:
    stack, x = Stack([Spec(form="packed")] * 4), example()
    view = fuse(TRACERS[tracer](stack, x))
    kinds = [view.op(value).kind for value in view.values()]
    assert kinds.count("linear") == 3
    assert kinds.count("rsqrt") == 1
    assert len(find_chains(view).singles) == 1


@pytest.mark.parametrize("tracer", TRACERS)
def test_fusing_what_was_fused_finds_no_chain(tracer: str) -> None:
    view = fuse(TRACERS[tracer](Stack([Spec(norm="rms_op")] * 2 + [Spec(eps=1e-3)]), example()))
    assert lengths(find_chains(view)) == []


class Around(nn.Module):
    """Something before, beside and after two layers; dead code too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 5)
        self.layers = nn.ModuleList([Layer(), Layer(Spec(width=5))])
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        start = torch.tanh(self.embed(x))
        y = start
        for layer in self.layers:
            y = layer(y)
        return self.head(y).softmax(-1), start


@pytest.mark.parametrize("tracer", ["symbolic", "dynamo", "aten"])
def test_everything_around_stays_as_it_was(tracer: str) -> None:
    model, x = Around(), example()
    view = TRACERS[tracer](model, x)
    out = find_chains(view).chains[0].blocks[-1].out
    name, around = out.name, ["linear", "tanh", "softmax"]
    before = described(view, find_chains(view).chains[0].blocks)
    assert all(any(word in line for line in before) for word in around)
    fused = fuse(view)
    assert out.name == name
    assert out in fused.module.graph.nodes
    after = described(fused, [])
    assert [line for line in after if line in before] == before
    expected = model.head(parallel_of(model, x)).softmax(-1)
    torch.testing.assert_close(run(fused, x), expected, rtol=1e-5, atol=1e-6)


def described(view, blocks) -> list[str]:
    """The calls outside of some blocks, in order; what only asks for a type apart."""
    inside = {value for block in blocks for value in (*block.interior, block.out)}
    nodes = [node for node in view.module.graph.nodes if node.op.startswith("call_") and node not in inside]
    asking = ("getattr", "assert")
    return [
        f"{each.name} = {each.target}{each.args}{each.kwargs}"
        for each in nodes
        if not any(word in each.name for word in asking) and not each.name.startswith("to")
    ]


def parallel_of(model: Around, x: Tensor) -> Tensor:
    start = torch.tanh(model.embed(x))
    return start + sum(layer.branch(start) for layer in model.layers)


class Measured(nn.Module):
    """Reads sizes of every stream, as an attention mask would."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Layer() for _ in range(3)])
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for layer in self.layers:
            x = layer(x)
            total = total + x.size(0) + x.shape[1]
        return x * total


def test_readers_of_a_shape_read_the_first_stream() -> None:
    model, x = Measured(), example()
    view = symbolic(model, x, shapes=True)
    assert lengths(find_chains(view)) == [3]
    fused = fuse(view)
    (node,) = fused.module.graph.find_nodes(op="placeholder")
    sizes = [each for each in fused.module.graph.nodes if each.target == "size"]
    assert [each.args[0] for each in sizes] == [node, node, find_chains(fused).singles[0].out]
    expected = (x + sum(layer.branch(x) for layer in model.layers)) * 15
    torch.testing.assert_close(run(fused, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tracer", ["symbolic", "dynamo", "aten"])
def test_a_constant_of_a_wider_type_still_widens_the_stream(tracer: str) -> None:
    """A float32 LayerScale after float16 FFNs gives a float32 sum; so does the wide FFN it is folded into."""

    class Mixed(Layer):
        def branch(self, x: Tensor) -> Tensor:
            return self.mlp(self.norm(x).to(torch.float16)) * self.scale

    specs = [Spec(layer_scale=True, width=3), Spec(layer_scale=True)]
    stack = Stack([Mixed(spec) for spec in specs])
    for layer in stack.layers:
        layer.mlp.half()
    x = example(torch.float16)
    assert stack(x).dtype == torch.float32
    result = run(fuse(TRACERS[tracer](stack, x)), x)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), parallel(stack, x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("tracer", TRACERS)
def test_a_float32_stream_over_half_precision_ffns(tracer: str) -> None:
    class Mixed(Layer):
        def branch(self, x: Tensor) -> Tensor:
            return self.mlp(self.norm(x).to(torch.float16)).to(torch.float32)

    stack, x = Stack([Mixed(Spec(norm="rms_op")) for _ in range(2)]), example()
    for layer in stack.layers:
        layer.mlp.half()
    view = fuse(TRACERS[tracer](stack, x))
    result = run(view, x)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), parallel(stack, x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_that_no_tracer_told(dtype: torch.dtype) -> None:
    """symbolic_trace knows no types; a norm with its gain inside the cast is float32 where it is read."""

    class Inside(Layer):
        def branch(self, x: Tensor) -> Tensor:
            y = x.float()
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.mlp((y * self.norm.weight.float()).type_as(x))

    stack, x = Stack([Inside(), Inside()], dtype), example(dtype)
    result = run(fuse(symbolic(stack, x)), x)
    assert result.dtype == dtype
    bound = TOLERANCE[dtype]
    torch.testing.assert_close(result.double(), parallel(stack, x), rtol=bound, atol=bound)


def test_unread_writes_stay() -> None:
    """cache[0] = x is read by nobody, and is what the caller wants"""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList([Layer(), Layer()])
            self.register_buffer("cache", torch.zeros(2, 3, HIDDEN))

        def forward(self, x: Tensor) -> Tensor:
            self.cache[:, 1:] = x[:, 1:]
            mask = torch.ones_like(x)
            mask[:, 0] = 0.0
            x = x * mask
            for layer in self.layers:
                x = layer(x)
            return x

    model, x = Cached().requires_grad_(False), example()
    fused = fuse(dynamo(model, x))
    model.cache.zero_()
    result = run(fused, x)
    torch.testing.assert_close(model.cache[:, 1:], x[:, 1:])
    masked = x.clone()
    masked[:, 0] = 0.0
    expected = masked + sum(layer.branch(masked) for layer in model.layers)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_dead_code_of_others_goes_and_impure_code_stays() -> None:
    def write(x: Tensor) -> Tensor:
        torch.relu(x)
        torch.rand(3)
        return x + 1.0

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return write(x)

    graph = symbolic(Net(), example()).module.graph
    remove_unread(graph, ())
    assert not graph.find_nodes(op="call_function", target=torch.relu)


@pytest.mark.parametrize("tracer", [aten, core])
def test_no_assertion_keeps_a_dead_value_alive(tracer: Callable) -> None:
    stack, x = Stack([Spec()] * 3, torch.float16), example(torch.float16)
    view = tracer(stack, x)
    before = sum("assert" in node.name for node in view.module.graph.nodes)
    fused = fuse(view)
    after = sum("assert" in node.name for node in fused.module.graph.nodes)
    assert after < before
    assert sum(fused.op(value).kind == "mean" for value in fused.values()) == 1


@settings(max_examples=40)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    forms=st.lists(st.sampled_from(["gated", "packed", "packed_turned", "turned"]), min_size=6, max_size=6),
    cuts=st.sets(st.integers(1, 5)),
    norm=st.sampled_from(["rms", "rms_op", "layer", "layer_op"]),
    add=st.sampled_from(["x+f", "f+x"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_any_groups_of_any_chain(widths, forms, cuts, norm, add, dtype) -> None:
    specs = [Spec(width=w, form=f, norm=norm, add=add) for w, f in zip(widths, forms, strict=False)]
    stack, x = Stack(specs, dtype), example(dtype)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(widths)), len(widths)]
    groups = [tuple(range(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]
    view = symbolic(stack, x, shapes=True)
    blocks = find_chains(view).chains[0].blocks
    wanted = [[blocks[index] for index in group] for group in groups if len(group) > 1]
    fused = fuse(view, wanted) if wanted else view
    bound = 4 * TOLERANCE[dtype]
    torch.testing.assert_close(run(fused, x).double(), parallel(stack, x, groups), rtol=bound, atol=bound)


def test_gradients_flow_through_the_wide_weights() -> None:
    stack, x = Stack([Spec()] * 2), example().requires_grad_()
    view = fuse(symbolic(copy.deepcopy(stack), example(), shapes=True))
    view.module(x).sum().backward()
    own, x.grad = x.grad, None
    (x + sum(layer.branch(x) for layer in stack.layers)).sum().backward()
    torch.testing.assert_close(own, x.grad, rtol=1e-5, atol=1e-5)


def test_an_activation_stays_spelled_as_it_was() -> None:
    view = fuse(symbolic(Stack([Spec(act="gelu tanh by hand")] * 2), example(), shapes=True))
    names = [str(node.target) for node in view.module.graph.nodes]
    assert sum("tanh" in name for name in names) == 1
    assert F.gelu not in {node.target for node in view.module.graph.nodes}
