"""Activations are recognised by what they compute."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fxfuse.passes.spellings.activations import ACTIVATIONS, GATE_PROBES, name_of, role_of
from tests.passes.graphs import (
    ACTS,
    TRACERS,
    Spec,
    Stack,
    example,
    find,
    find_chains,
    fuse,
    lengths,
    parallel,
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
