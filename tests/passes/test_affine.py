"""Constants after a product or a norm: which are peeled off, in which order, and which are not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxfuse.passes.elementwise import constant
from fxfuse.passes.fx.view import FxView
from fxfuse.passes.records import Step
from fxfuse.passes.spellings.affine import is_per_channel, peel, peel_while
from fxfuse.passes.view import Op
from tests.passes.graphs import HIDDEN, example, symbolic

SHAPES = {
    "scalar": (),
    "one": (1,),
    "vector": (HIDDEN,),
    "row": (1, HIDDEN),
    "rows": (3, HIDDEN),
    "column": (3, 1),
}


class Applied(nn.Module):
    """Steps after relu(x)."""

    def __init__(self, write) -> None:
        super().__init__()
        self.write = write
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self, torch.relu(x))


def peeled(write) -> tuple[str, list[Step], FxView]:
    view = symbolic(Applied(write), example(), shapes=True)
    output = view.module.graph.output_node().args[0]
    operand, steps = peel_while(view, output, lambda _: True, set())
    return view.node_name(operand), list(steps), view


@pytest.mark.parametrize(
    ("write", "kinds"),
    [
        (lambda m, y: y * m.vector, ["mul"]),
        (lambda m, y: m.vector * y, ["mul"]),
        (lambda m, y: y + m.vector, ["add"]),
        (lambda m, y: m.vector + y, ["add"]),
        (lambda m, y: y / m.vector, ["div"]),
        (lambda m, y: y * 0.5, ["mul"]),
        (lambda m, y: y * m.scalar, ["mul"]),
        (lambda m, y: y * m.row, ["mul"]),
        (lambda m, y: (y * 2.0 + m.vector) / m.one, ["mul", "add", "div"]),
        (lambda m, y: ((y + m.vector).to(torch.float64) * m.vector).to(torch.float32), ["add", "mul"]),
        (lambda m, y: y * (m.vector + 1.0), ["mul"]),
        (lambda m, y: y * (m.vector * m.scalar), ["mul"]),
        (lambda m, y: y - m.vector, ["add"]),
        (lambda m, y: m.vector - y, ["mul", "add"]),
        (lambda m, y: -y, ["mul"]),
        (lambda m, y: y * torch.relu(m.vector).sum(), ["mul"]),
        (lambda m, y: y * m.vector.expand(3, HIDDEN), ["mul"]),
        (lambda m, y: y * m.vector[None, None, :], ["mul"]),
    ],
)
def test_constants_are_peeled_in_the_order_of_application(write, kinds) -> None:
    core, steps, _ = peeled(write)
    assert (core, [step.kind for step in steps]) == ("relu", kinds)


@pytest.mark.parametrize(
    "write",
    [
        lambda m, y: m.vector / y,
        lambda m, y: y * y,
        lambda m, y: y**2,
        lambda m, y: y * m.rows,
        lambda m, y: y + m.column,
        lambda m, y: y * (m.rows + 1.0),
        lambda m, y: y - m.rows,
        lambda m, y: m.rows - y,
        lambda m, y: y * y.sum(),
    ],
)
def test_what_is_no_step_stays(write) -> None:
    core, steps, _ = peeled(write)
    assert steps == []
    assert core != "relu"


def test_a_step_that_is_not_accepted_ends_the_walk() -> None:
    view = symbolic(Applied(lambda m, y: (y * m.vector) * 0.5), example(), shapes=True)
    output = view.module.graph.output_node().args[0]
    assert peel_while(view, output, lambda step: step.operand != 0.5, set()) == (output, ())


def test_the_trail_holds_what_was_passed() -> None:
    view = symbolic(Applied(lambda m, y: (y * m.vector).to(torch.float64) + 1.0), example(), shapes=True)
    trail: set = set()
    peel_while(view, view.module.graph.output_node().args[0], lambda _: True, trail)
    assert {view.node_name(each) for each in trail} == {"mul", "to", "add"}


def test_an_operator_hidden_in_another_is_peeled_too() -> None:
    """y + 3 v is written add(y, v, alpha=3)"""
    core, (step,), view = peeled(lambda m, y: torch.add(y, m.vector, alpha=3))
    assert core == "relu"
    assert isinstance(step.operand, Op)
    assert is_per_channel(view, step.operand)


def test_no_step_without_an_operator() -> None:
    view = symbolic(Applied(lambda m, y: y), example())
    assert peel(view, Op("relu", (1.0,))) is None
    assert peel(view, Op("mul", (1.0,))) is None
    assert not is_per_channel(view, None)


def test_a_shape_that_no_tracer_told_is_computed() -> None:
    view = symbolic(Applied(lambda m, y: y * (m.rows * 2.0) + (m.vector + 1.0)), example())
    (first,) = (node for node in view.module.graph.nodes if node.name == "mul")
    (second,) = (node for node in view.module.graph.nodes if node.name == "add")
    assert (view.shape(first), is_per_channel(view, first)) == ((3, HIDDEN), False)
    assert (view.shape(second), is_per_channel(view, second)) == ((HIDDEN,), True)


@pytest.mark.parametrize(
    "write", [lambda m, y: y - m.vector, lambda m, y: m.vector - y, lambda m, y: -y * m.scalar - 2.0]
)
def test_steps_compute_what_was_written(write) -> None:
    core, steps, view = peeled(write)
    y = torch.linspace(-1.0, 1.0, HIDDEN, dtype=torch.float64)
    value = y
    for step in steps:
        operand = constant(view, step.operand)
        value = value + operand if step.kind == "add" else value * operand
    double = Applied(None).double()
    double.load_state_dict(view.module.state_dict(), strict=False)
    torch.testing.assert_close(value, write(double, y))


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from(["mul", "add", "div"]), max_size=5),
    st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_any_sequence_is_read_back(kinds: list[str], flips: list[bool]) -> None:
    def write(m: Applied, y: Tensor) -> Tensor:
        for kind, flip in zip(kinds, flips, strict=False):
            if kind == "div":
                y = y / m.vector
            else:
                function = torch.mul if kind == "mul" else torch.add
                y = function(m.vector, y) if flip else function(y, m.vector)
        return y

    core, steps, _ = peeled(write)
    assert (core, [step.kind for step in steps]) == ("relu", kinds)
