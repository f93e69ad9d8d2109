"""Activations are recognised by what they compute."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fxfuse.passes.spellings.activations import ACTIVATIONS, GATE_PROBES, name_of, role_of
from tests.passes import onnx_graphs
from tests.passes.graphs import (
    ACTS,
    TRACERS,
    Layer,
    Spec,
    Stack,
    example,
    find,
    find_chains,
    fuse,
    lengths,
    parallel,
    reasons,
    run,
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_name_names_itself(name: str) -> None:
    assert name_of(ACTIVATIONS[name](GATE_PROBES)) == name


def test_constants_rounded_to_half_keep_the_name() -> None:
    half = [float(torch.tensor(c).half()) for c in (0.7978845608, 0.044715, 1.702)]
    x = GATE_PROBES
    assert name_of(0.5 * x * (1 + torch.tanh(half[0] * (x + half[1] * x**3)))) == "gelu_tanh"
    assert name_of(x * torch.sigmoid(half[2] * x)) == "quick_gelu"


@pytest.mark.parametrize(
    "function", [F.softsign, F.hardsigmoid, torch.sin, lambda x: 2 * F.silu(x), lambda x: x * 1.01]
)
def test_what_is_near_none_is_elementwise(function) -> None:
    assert name_of(function(GATE_PROBES)) == "elementwise"


def test_gelus_are_told_apart() -> None:
    """They differ by 5e-4 at most, which is less than the tolerance of a name."""
    assert name_of(F.gelu(GATE_PROBES)) == "gelu"
    assert name_of(F.gelu(GATE_PROBES, approximate="tanh")) == "gelu_tanh"


@pytest.mark.parametrize("written", ACTS)
@pytest.mark.parametrize("form", ["gated", "turned", "ungated"])
def test_every_spelling_is_named_and_fused(written: str, form: str) -> None:
    stack = Stack([Spec(act=written, form=form), Spec(act=written, form=form, width=5)])
    found = find(stack)
    assert lengths(found) == [2]
    assert [block.ffn.activation.name for block in found.chains[0].blocks] == [ACTS[written][1]] * 2
    fused = fuse(TRACERS["symbolic"](stack, example()))
    torch.testing.assert_close(
        run(fused, example()).double(), parallel(stack, example()), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("written", ["silu", "gelu tanh", "relu squared as power", "quick gelu"])
@pytest.mark.parametrize("tracer", ["dynamo", "core"])
def test_names_hold_in_other_forms(written: str, tracer: str) -> None:
    found = find_chains(TRACERS[tracer](Stack([Spec(act=written)]), example()))
    assert [block.ffn.activation.name for block in found.singles] == [ACTS[written][1]]


@pytest.mark.parametrize(
    "near",
    [
        lambda g: F.silu(g.clamp(max=7.0)),
        lambda g: F.silu(g.clamp(max=30.0)),
        lambda g: F.silu(g) * (g.abs() > 0.01),
        lambda g: torch.where(g > 0.3, F.silu(g), F.silu(g) * 0.5),
    ],
)
def test_what_differs_in_places_only_is_another_activation(near) -> None:
    """A clamp far out, a threshold near 0: neighbours with and without it cannot share a region."""

    class Odd(Layer):
        def __init__(self) -> None:
            super().__init__(Spec())
            self.mlp.activate = near

    found = find(Stack([Spec(), Odd()]))
    assert len(found.singles) == 2
    assert "layers.1.mlp: " in reasons(found)
    assert lengths(find(Stack([Odd(), Odd()]))) == [2]


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"identity"}))
def test_up_is_the_linear_argument(name: str) -> None:
    function = ACTIVATIONS[name]
    assert role_of(lambda a, b: function(a) * b) == 1
    assert role_of(lambda a, b: a * function(b)) == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: F.silu(a) * (b + 1),
        lambda a, b: F.silu(a) + b,
        lambda a, b: F.silu(a * b),
        lambda a, b: F.silu(a) * F.silu(b),
        lambda a, b: F.silu(a) * b.clamp(-1, 1),
        lambda a, b: F.silu(a) * b.abs(),
    ],
)
def test_neither_argument_is_linear(function) -> None:
    assert role_of(function) is None


@settings(max_examples=40)
@given(scale=st.floats(-3, 3).filter(lambda c: abs(c) > 1e-3), name=st.sampled_from(sorted(ACTIVATIONS)))
def test_roles_survive_any_multiplier(scale: float, name: str) -> None:
    function = ACTIVATIONS[name]
    assert role_of(lambda a, b: scale * (b * function(a))) == 1


# ONNX operators with attributes

ONNX: dict[str, tuple[dict[str, float], Callable[[Tensor], Tensor], str]] = {
    "Elu": ({"alpha": 0.5}, lambda x: F.elu(x, 0.5), "elementwise"),
    "Selu": ({}, F.selu, "selu"),
    "Celu": ({"alpha": 1.3}, lambda x: F.celu(x, 1.3), "elementwise"),
    "LeakyRelu": ({}, F.leaky_relu, "leaky_relu"),
    "ThresholdedRelu": ({"alpha": 0.3}, lambda x: F.threshold(x, 0.3, 0.0), "elementwise"),
    "HardSigmoid": ({"alpha": 0.25}, lambda x: (0.25 * x + 0.5).clamp(0, 1), "elementwise"),
    "HardSwish": ({}, F.hardswish, "hardswish"),
    "Softplus": ({}, F.softplus, "softplus"),
}


def onnx_chain(write: Callable[[onnx_graphs.Graph, str], str], act: Callable[[Tensor], Tensor]):
    """Two ungated blocks with an activation that `write` makes, as a graph and its model."""

    def ffn(g: onnx_graphs.Graph, h: str, block: onnx_graphs.Block) -> str:
        return g.product(write(g, g.product(h, block, "gate")), block, "down")

    g = onnx_graphs.Graph()
    x = "x"
    for _ in range(2):
        x = g.block(x, g.new_block(5, gated=False, act=act), ffn=ffn)
    return g, g.model(x)


@pytest.mark.parametrize("op", ONNX)
def test_onnx_operators_with_attributes(op: str) -> None:
    attributes, function, name = ONNX[op]
    g, model = onnx_chain(lambda g, gate: g.node(op, gate, **attributes), function)
    x = onnx_graphs.example()
    (chain,) = onnx_graphs.find(model).chains
    assert [block.ffn.activation.name for block in chain.blocks] == [name] * 2
    torch.testing.assert_close(
        torch.from_numpy(onnx_graphs.run(onnx_graphs.fuse(model), x)[0]).double(),
        torch.from_numpy(g.parallel(x)),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(("slope", "chains"), [([0.25], [2]), ([0.1] * 5, [])])
def test_onnx_prelu_is_an_activation_with_one_slope(slope: list[float], chains: list[int]) -> None:
    act = functools.partial(F.leaky_relu, negative_slope=0.25)
    g, model = onnx_chain(lambda g, gate: g.node("PRelu", gate, g.weight(slope)), act)
    stream = onnx_graphs.example()
    found = onnx_graphs.find(model)
    assert onnx_graphs.lengths(found) == chains
    if not chains:
        assert "the activation has a constant per channel" in onnx_graphs.reasons(found)
        return
    fused = torch.from_numpy(onnx_graphs.run(onnx_graphs.fuse(model), stream)[0]).double()
    torch.testing.assert_close(fused, torch.from_numpy(g.parallel(stream)), rtol=1e-5, atol=1e-5)
