"""Regions of elementwise operators: where they end, and what they compute."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.passes.elementwise import FUNCTIONS, Region, constant, evaluate, region
from fxfuse.passes.fx.view import FxView
from fxfuse.passes.quantised import formulas
from fxfuse.passes.view import Op
from tests.passes.graphs import HIDDEN, dynamo, example, symbolic


class Net(nn.Module):
    """`write(net, a, b)` of the products a and b."""

    def __init__(self, write) -> None:
        super().__init__()
        self.write = write
        self.a, self.b = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.vector, self.matrix = nn.Parameter(torch.randn(HIDDEN)), nn.Parameter(torch.randn(3, HIDDEN))
        self.drop = nn.Dropout(0.25)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self, self.a(x), self.b(x))


def walked(write, **options) -> tuple[FxView, Region]:
    view = symbolic(Net(write), example(), shapes=True)
    return view, region(view, output(view), lambda each: is_product(view, each), **options)


def output(view: FxView):
    return view.module.graph.output_node().args[0]


def is_product(view: FxView, value) -> bool:
    return (op := view.op(value)) is not None and op.kind == "linear"


def names(view: FxView, values) -> set[str]:
    return {view.node_name(value) for value in values}


def test_a_region_ends_at_leaves_and_constants() -> None:
    view, found = walked(lambda m, a, b: torch.sigmoid(a * 2.0) * b + m.vector * 3.0)
    assert names(view, found.leaves) == {"linear", "linear_1"}
    assert names(view, found.interior) == {"mul", "sigmoid", "mul_1", "add"}
    assert len(found.constants) == 1
    assert (found.foreign, found.dropout) == ([], None)


def test_a_leaf_read_twice_is_one_leaf() -> None:
    _, found = walked(lambda m, a, b: torch.sigmoid(a) * a + a)
    assert len(found.leaves) == 1


@pytest.mark.parametrize(
    ("write", "foreign"),
    [
        (lambda m, a, b: torch.relu(a.softmax(-1)) * b, "softmax"),
        (lambda m, a, b: torch.relu(a.sum(-1, keepdim=True)) * b, "sum_1"),
        (lambda m, a, b: torch.relu(a[..., :4]).repeat(1, 1, 2) * b, "repeat"),
        (lambda m, a, b: torch.div(a, 2.0, rounding_mode="floor") * b, "div"),
        (lambda m, a, b: torch.cumsum(a, -1) * b, "cumsum"),
    ],
)
def test_what_is_not_elementwise_is_foreign(write, foreign: str) -> None:
    view, found = walked(write)
    assert names(view, found.places) == {foreign}


def test_active_dropout_is_noted() -> None:
    net = Net(lambda m, a, b: m.drop(torch.relu(a)) * b)
    for training, rate in ((False, None), (True, 0.25)):
        view = symbolic(net.train(training), example(), shapes=True)
        assert region(view, output(view), lambda each, view=view: is_product(view, each)).dropout == rate


def test_a_walk_stops_at_its_limit() -> None:
    def write(m: Net, a: Tensor, b: Tensor) -> Tensor:
        for _ in range(100):
            a = torch.relu(a)
        return a

    _, found = walked(write)
    assert found.foreign
    assert len(found.interior) <= 64


def test_a_value_read_twice_is_computed_once() -> None:
    """y = y * y, forty times over, would take 2^40 steps otherwise"""

    def write(m: Net, a: Tensor, b: Tensor) -> Tensor:
        for _ in range(40):
            a = torch.tanh(a) * torch.tanh(a) + a * 0.5
        return a

    view = symbolic(Net(write), example())
    x = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)
    (leaf,) = (value for value in view.values() if view.node_name(value) == "linear")
    expected = write(None, x, x)
    torch.testing.assert_close(evaluate(view, output(view), {leaf: x}, torch.float64), expected)


def test_casts_are_passed_over_unless_asked_for() -> None:
    view = symbolic(
        Net(lambda m, a, b: (a.to(torch.float16) * 1.0).to(torch.float32)), example(), shapes=True
    )
    (leaf,) = (value for value in view.values() if view.node_name(value) == "linear")
    third = torch.tensor(1.0 / 3.0, dtype=torch.float64)
    assert evaluate(view, output(view), {leaf: third}, torch.float64) == third
    assert evaluate(view, output(view), {leaf: third}, torch.float64, cast=True) == third.half().float()


def test_nothing_has_no_value() -> None:
    view = symbolic(Net(lambda m, a, b: a), example())
    with pytest.raises(ValueError, match="an absent operand has no value"):
        evaluate(view, None, {}, torch.float64)
    with pytest.raises(ValueError, match="a literal is not a weight"):
        constant(view, 2.0, None)


def constants_of(write, tracer=symbolic) -> tuple[FxView, Net, object]:
    net = Net(lambda m, a, b: a * write(m))
    view = tracer(net, example())
    (mul,) = (
        value for value in view.values() if view.op(value).kind == "mul" and not view.is_constant(value)
    )
    return view, net, view.op(mul).inputs[1]


@pytest.mark.parametrize("tracer", [symbolic, dynamo])
@pytest.mark.parametrize(
    "write",
    [
        lambda m: m.vector + 1.0,
        lambda m: torch.exp(m.vector) / 2.0,
        lambda m: (m.vector.double() * 0.1).float(),
        lambda m: m.vector.to(torch.float16).to(torch.float32),
    ],
)
def test_constant_expressions_are_computed_in_float64(write, tracer) -> None:
    view, net, value = constants_of(write, tracer)
    assert view.is_constant(value)
    double = Net(None).double()
    double.load_state_dict({name: each.double() for name, each in net.state_dict().items()})
    assert constant(view, value).dtype == torch.float64
    torch.testing.assert_close(constant(view, value), write(double).double(), rtol=1e-3, atol=1e-3)


def test_a_weight_keeps_its_type_behind_transposes_and_casts() -> None:
    net = Net(lambda m, a, b: a @ m.b.weight.t().to(torch.float16).to(torch.float32))
    view = symbolic(net, example(), shapes=True)
    (product,) = (
        each for each in view.values() if view.op(each).kind == "linear" and view.node_name(each) == "matmul"
    )
    weight = constant(view, view.op(product).inputs[1], None)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, net.b.weight.t().half().float(), rtol=0, atol=0)


OTHERS = {
    "cast", "part", "transpose", "greater", "less", "at_least", "at_most", "where", "threshold",
    *formulas.FUNCTIONS,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - OTHERS))
def test_every_function_takes_float64_without_attributes(name: str) -> None:
    x = torch.linspace(0.1, 2.0, 5, dtype=torch.float64)
    two = name in ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "full_like")
    given = (x, x) if two else (x, x[:1]) if name == "prelu" else (x,)
    assert FUNCTIONS[name](*given).dtype == torch.float64


@pytest.mark.parametrize("written", [F.elu, F.selu, lambda x: F.celu(x, 1.3), lambda x: F.elu(x, 0.4)])
def test_elu_and_its_kin_are_one_function(written) -> None:
    view, found = walked(lambda m, a, b: written(a) * b)
    x = torch.linspace(-3.0, 3.0, 13, dtype=torch.float64)
    known = {leaf: x if view.node_name(leaf) == "linear" else torch.ones_like(x) for leaf in found.leaves}
    torch.testing.assert_close(evaluate(view, output(view), known, torch.float64), written(x))


def test_choices_between_two_values() -> None:
    x = torch.tensor([-1.0, 2.0])
    greater = FUNCTIONS["greater"](x, torch.tensor(0.0))
    assert FUNCTIONS["where"](greater, x, -x).tolist() == [1.0, 2.0]
    assert FUNCTIONS["less"](x, torch.tensor(0.0)).tolist() == [True, False]
    assert FUNCTIONS["at_least"](x, torch.tensor(2.0)).tolist() == [False, True]
    assert FUNCTIONS["at_most"](x, torch.tensor(-1.0)).tolist() == [True, False]


UNARY = sorted({"neg", "abs", "sigmoid", "tanh", "erf", "relu", "silu", "square", "gelu"})


@settings(max_examples=40)
@given(
    st.lists(st.one_of(st.sampled_from(UNARY), st.sampled_from(["add", "sub", "mul", "maximum"])), max_size=8)
)
def test_any_expression_is_computed_as_torch_does(kinds: list[str]) -> None:
    def write(m: Net, a: Tensor, b: Tensor) -> Tensor:
        for kind in kinds:
            if kind not in UNARY:
                a = getattr(torch, kind)(a, b)
            else:
                a = getattr(torch if hasattr(torch, kind) else torch.nn.functional, kind)(a)
        return a + b

    net, x = Net(write), example()
    view = symbolic(net, x, shapes=True)
    first, second = (each for each in view.values() if is_product(view, each))
    known = {first: net.a(x).double(), second: net.b(x).double()}
    expected = write(net, known[first], known[second])
    torch.testing.assert_close(evaluate(view, output(view), known, torch.float64), expected)


def test_operators_hidden_in_one_another() -> None:
    view = symbolic(Net(lambda m, a, b: a), example())
    hidden = Op("mul", (Op("add", (2.0, 3.0)), 4.0))
    assert evaluate(view, hidden, {}, torch.float64) == 20.0
    assert constant(view, hidden) == 20.0
