"""A block is norm, FFN and residual add; each place that is almost one says why it is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.passes.blocks import match_block
from fxfuse.passes.chains import find_chains
from fxfuse.passes.records import Block, Miss
from tests.passes.graphs import (
    HIDDEN,
    TRACERS,
    HandNorm,
    Layer,
    Spec,
    Stack,
    dynamo,
    example,
    find,
    fuse,
    lengths,
    parallel,
    reasons,
    run,
    symbolic,
)

Write = Callable[["Written", Tensor], Tensor]


class Written(Layer):
    """A layer whose forward is `write(layer, x)`."""

    def __init__(self, write: Write, spec: Spec = Spec()) -> None:  # noqa: B008
        super().__init__(spec)
        self.write = write
        self.other_norm = HandNorm(spec)
        self.mixing = nn.Linear(HIDDEN, HIDDEN)
        self.column = nn.Parameter(torch.randn(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self, x)


def pair(write: Write) -> Stack:
    return Stack([Written(write), Written(write)])


def ffn(m: Written, x: Tensor) -> Tensor:
    return m.mlp(m.norm(x))


@pytest.mark.parametrize(
    "write",
    [
        lambda m, x: x + ffn(m, x),
        lambda m, x: ffn(m, x) + x,
        lambda m, x: torch.add(x, ffn(m, x)),
        lambda m, x: torch.add(x, ffn(m, x), alpha=1),
        lambda m, x: torch.add(input=x, other=ffn(m, x)),
        lambda m, x: x + 0.5 * ffn(m, x),
        lambda m, x: torch.add(x, ffn(m, x), alpha=0.5),
        lambda m, x: x.add(ffn(m, x), alpha=2),
        lambda m, x: torch.addcmul(x, ffn(m, x), m.mixing.bias),
        lambda m, x: torch.addcmul(x, m.mixing.bias, ffn(m, x), value=0.5),
        lambda m, x: torch.addcdiv(x, ffn(m, x), m.mixing.bias.exp()),
        lambda m, x: sum([x, ffn(m, x)]),
        lambda m, x: (x * 1.0).add_(ffn(m, x)),
        lambda m, x: x + (ffn(m, x.to(torch.float32)) / 2.0).clone(),
        lambda m, x: x.contiguous() + F.dropout(ffn(m, x.view(x.shape)), 0.1, False),
    ],
)
def test_residual_adds(write: Write) -> None:
    stack, x = pair(write), example()
    first, second = stack.layers
    expected = first(x) + second(x) - x
    view = symbolic(stack, x, shapes=True)
    assert lengths(find_chains(view)) == [2]
    torch.testing.assert_close(run(fuse(view), x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (
            lambda m, x: m.norm(x + m.mlp(x)),
            "the FFN reads the residual stream without a norm before it (post-norm form)",
        ),
        (lambda m, x: x + m.mlp(m.mixing(x)), "no norm stands before the FFN, which reads linear"),
        (
            lambda m, x: x + m.other_norm(ffn(m, x)),
            "a norm stands between the FFN and the residual add (sandwich form)",
        ),
        (
            lambda m, x: x + m.mixing(m.other_norm(x)).relu() + ffn(m, x),
            "the norm reads x but the residual add reads add_1: attention and FFN stand in parallel, or "
            "something lies between",
        ),
        (
            lambda m, x: m.norm(x) + ffn(m, x),
            "the norm reads x but the residual add reads mul_1: ",
        ),
        (
            lambda m, x: x + ffn(m, x) + m.mlp.gate_proj.weight.sum(),
            "its weight layers_0_mlp_gate_proj_weight is also read by add_2",
        ),
        (
            lambda m, x: x + ffn(m, x) * F.linear(x, m.mlp.up_proj.weight).sum(),
            None,
        ),
        (
            lambda m, x: x + m.mlp(m.norm(x.view(6, 1, HIDDEN))).view(2, 3, HIDDEN),
            "the norm reads the stream reshaped to [6, 1, 8], the residual add as [2, 3, 8]",
        ),
        (
            lambda m, x: x - ffn(m, x),
            "the FFN is subtracted from the residual stream (sub), not added",
        ),
        (
            lambda m, x: (x + m.mixing.bias) + ffn(m, x),
            "the norm reads x but the residual add reads add: attention and FFN stand in parallel",
        ),
        (lambda m, x: x * 2.0 + ffn(m, x), "the norm reads x but the residual add reads mul"),
        (lambda m, x: x + ffn(m, x) * m.column, None),
        (lambda m, x: x + ffn(m, x) + 1.0, None),
        (lambda m, x: x + m.mixing(x), None),
        (lambda m, x: ffn(m, x), None),
    ],
)
def test_what_is_no_block(write: Write, reason: str | None) -> None:
    found = find(pair(write))
    assert not found.chains
    if reason is not None:
        assert reason in reasons(found)
        assert not found.singles


def test_a_bias_added_to_the_sum_ends_a_chain() -> None:
    found = find(pair(lambda m, x: (x + ffn(m, x)) + m.mixing.bias))
    assert len(found.singles) == 2
    assert "between layers.0.mlp and it on the residual stream something else stands (add_2)" in reasons(
        found
    )


def test_a_sum_of_another_shape_than_the_stream_is_none() -> None:
    """A gain of shape [1, 1, 1, H] gives the sum an axis more."""
    found = find(Stack([Written(lambda m, x: x + m.mlp(m.norm(x) * m.mixing.bias.view(1, 1, 1, HIDDEN)))]))
    assert "the norm reads the stream reshaped to [2, 3, 8], the residual add as [1, 2, 3, 8]" in reasons(
        found
    )
    assert not found.singles


def test_shapes_must_fit_together() -> None:
    """Rows of a packed weight that down_proj does not take."""

    class Broadcast(Layer):
        def branch(self, x: Tensor) -> Tensor:
            first, second = self.mlp.gate_up_proj(self.norm(x)).split([1, 12], -1)
            return self.mlp.down_proj(F.silu(first) * second)

    layers = [Broadcast(Spec(form="packed")) for _ in range(2)]
    for layer in layers:
        layer.mlp.gate_up_proj = nn.Linear(HIDDEN, 13)
    assert "the shapes of its weights are not known or do not fit together" in reasons(find(Stack(layers)))


def test_every_field_of_a_block() -> None:
    view = symbolic(Stack([Spec(bias=True, width=5)]), example(torch.float16).float(), shapes=True)
    (block,) = find_chains(view).singles
    assert (block.name, block.hidden_size, block.intermediate_size) == ("layers.0.mlp", HIDDEN, 5)
    assert (block.dtype, block.gated) == ("float32", True)
    assert [view.node_name(value) for value in (block.x, block.branch, block.out)] == [
        "x",
        "linear_2",
        "add_1",
    ]
    assert [len(linear.steps) for linear in (block.ffn.gate, block.ffn.up, block.ffn.down)] == [1, 1, 1]


@pytest.mark.parametrize("tracer", TRACERS)
def test_a_module_called_twice_shares_its_weights(tracer: str) -> None:
    layer = Layer(Spec())
    found = find_chains(TRACERS[tracer](Stack([layer, layer]), example()))
    assert not found.chains
    assert "its weight " in reasons(found)
    assert "gate_proj" in reasons(found) or tracer == "aot"  # whose placeholders have no names
    assert " is also read by " in reasons(found)


@pytest.mark.parametrize("tracer", ["symbolic", "modules"])
def test_one_parameter_under_two_names(tracer: str) -> None:
    stack = Stack([Spec(), Spec()])
    stack.layers[1].mlp.down_proj.weight = stack.layers[0].mlp.down_proj.weight
    assert "down_proj" in reasons(find_chains(TRACERS[tracer](stack, example())))


def test_a_shared_gain_is_no_obstacle() -> None:
    """The gain is folded into either block's own weights."""
    stack = Stack([Spec(), Spec()])
    stack.layers[1].norm.weight = stack.layers[0].norm.weight
    view = symbolic(stack, example(), shapes=True)
    torch.testing.assert_close(
        run(fuse(view), example()).double(), parallel(stack, example()), rtol=1e-6, atol=1e-6
    )


# In-place adds: dynamo and symbolic_trace keep them, and each has readers of its own


class Embedded(nn.Module):
    """A stream of its own, so that nothing outside sees writes to it; `write(net, x)` runs both layers."""

    def __init__(self, write: Callable[[Embedded, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.write = write
        self.embed = nn.Linear(HIDDEN, HIDDEN)
        self.first, self.second = Layer(Spec()), Layer(Spec())
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self, self.embed(x))


def add_in_place(layer: Layer, x: Tensor) -> Tensor:
    x += layer.branch(x)
    return x


def scale(x: Tensor, factor: float) -> Tensor:
    x.mul_(factor)
    return x


@pytest.mark.parametrize("tracer", ["symbolic", "dynamo"])
@pytest.mark.parametrize(
    "write",
    [
        lambda m, x: add_in_place(m.second, add_in_place(m.first, x)),
        lambda m, x: m.second(add_in_place(m.first, x)),
        lambda m, x: add_in_place(m.second, m.first(scale(x, 2.0))),
    ],
)
def test_adds_in_place_are_residual_adds(tracer: str, write) -> None:
    net = Embedded(write)
    x = example()
    stream = net.embed(x)
    stream = stream * 2.0 if "scale" in write.__code__.co_names else stream
    expected = stream + net.first.branch(stream) + net.second.branch(stream)
    view = TRACERS[tracer](net, x)
    assert lengths(find_chains(view)) == [2], reasons(find_chains(view))
    torch.testing.assert_close(run(fuse(view), x), expected, rtol=1e-5, atol=1e-5)


def tap_before(m: Embedded, x: Tensor) -> Tensor:
    y = x.add_(m.first.branch(x))
    return m.second(y) + x


def write_between(m: Embedded, x: Tensor) -> Tensor:
    y = m.first(x)
    x.mul_(3.0)
    return m.second(y)


def write_inside(m: Embedded, x: Tensor) -> Tensor:
    h = m.first.norm(x)
    x.mul_(3.0)
    return m.second(x + m.first.mlp(h))


def write_to_a_slice(m: Embedded, x: Tensor) -> Tensor:
    y = m.first(x)
    x[:, 0] = 0.0
    return m.second(y)


@pytest.mark.parametrize("tracer", ["symbolic", "dynamo"])
@pytest.mark.parametrize("write", [tap_before, write_between, write_inside, write_to_a_slice])
def test_a_stream_that_is_written_over_is_left_alone(tracer: str, write) -> None:
    if tracer == "symbolic" and write is write_to_a_slice:
        pytest.skip("symbolic_trace has no assignment to items")
    assert not find_chains(TRACERS[tracer](Embedded(write), example())).chains


def test_an_input_that_is_written_to_is_left_alone() -> None:
    """The caller would see that nothing was added to it."""
    assert lengths(find_chains(dynamo(Stack([Spec(add="inplace"), Spec()]), example()))) == []


def test_neither_block_nor_miss() -> None:
    view = symbolic(Stack([Spec()]), example(), shapes=True)
    kinds = {view.node_name(value): match_block(view, value) for value in view.values()}
    assert isinstance(kinds.pop("add_1"), Block)
    assert not any(isinstance(found, (Block, Miss)) for found in kinds.values())


def test_sums_of_shapes_are_no_residual_adds() -> None:
    class Shaped(Layer):
        def branch(self, x: Tensor) -> Tensor:
            return self.mlp(self.norm(x)).view(x.size()[:-1] + (HIDDEN,))

    view = symbolic(Stack([Shaped(), Shaped()]), example())
    assert not [miss for miss in find_chains(view).misses if "getitem" in miss.reason]
