"""Bounds that a graph computes: Slice(y, 0, (Gather(Shape(y), -1) + 1) / 2)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxfuse.passes.onnx.integers import fold_integers
from tests.passes.onnx_graphs import HIDDEN, Graph, view_of


def folded(write: Callable[[Graph], str]) -> list[int] | None:
    g = Graph()
    value = write(g)
    y = g.node("Reshape", "x", value)
    return fold_integers(view_of(g.model(y, shaped=False)), value, [])


def size(g: Graph, of: str = "x", axis: int = -1) -> str:
    return g.node("Gather", g.node("Shape", of), g.weight(axis, dtype=np.int64))


def one(g: Graph, value: int) -> str:
    return g.weight(value, dtype=np.int64)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda g: g.ints(1, 2, 3), [1, 2, 3]),
        (lambda g: one(g, 5), [5]),
        (lambda g: size(g), [HIDDEN]),
        (lambda g: size(g, axis=2), [HIDDEN]),
        (lambda g: size(g, axis=0), None),
        (lambda g: g.node("Div", g.node("Add", size(g), one(g, 1)), one(g, 2)), [4]),
        (lambda g: g.node("Sub", size(g), one(g, 3)), [5]),
        (lambda g: g.node("Mul", size(g), g.ints(3)), [24]),
        (lambda g: g.node("Div", one(g, -7), one(g, 2)), [-3]),
        (lambda g: g.node("Unsqueeze", g.node("Cast", size(g), to=7), g.ints(0)), [HIDDEN]),
        (
            lambda g: g.node("Concat", g.ints(0, -1), g.node("Unsqueeze", size(g), g.ints(0)), axis=0),
            [0, -1, HIDDEN],
        ),
        (
            lambda g: g.node("Concat", g.node("Unsqueeze", size(g, axis=0), g.ints(0)), g.ints(4), axis=0),
            None,
        ),
        (lambda g: g.node("Squeeze", g.node("Identity", g.ints(6))), [6]),
        (lambda g: g.node("Shape", "x"), None),
        (lambda g: g.node("Gather", g.node("Shape", "x", start=1), one(g, 0)), None),
        (lambda g: g.node("Gather", g.ints(4, 5), one(g, 0)), None),
        (lambda g: g.node("Mul", g.ints(2, 3), g.ints(2, 3)), None),
        (lambda g: g.node("Abs", g.ints(2)), None),
    ],
)
def test_folding(write: Callable[[Graph], str], expected: list[int] | None) -> None:
    assert folded(write) == expected


def test_large_and_other_tensors_are_not_small_integers() -> None:
    g = Graph()
    g.weight(np.arange(17), "long", dtype=np.int64)
    g.weight([1.0], "float")
    g.weight([1, 2], "short", dtype=np.int32)
    view = view_of(g.model(g.node("Relu", "x")))
    assert [fold_integers(view, name, []) for name in ("long", "float", "short", "x", "nowhere")] == [
        None, None, [1, 2], None, None,
    ]  # fmt: skip


def test_what_was_taken_is_told() -> None:
    g = Graph()
    gathered = size(g)
    half = g.node("Div", gathered, one(g, 2))
    view = view_of(g.model(g.node("Reshape", "x", half), shaped=False))
    seen: list[str] = []
    assert fold_integers(view, half, seen) == [4]
    assert {half, gathered} < set(seen)


def test_the_last_element_may_be_known_alone() -> None:
    g = Graph()
    shape = g.node("Concat", g.node("Shape", "x", end=2), g.ints(HIDDEN), axis=0)
    view = view_of(g.model(g.node("Reshape", "x", shape), shaped=False))
    assert (fold_integers(view, shape, []), view.last_integer(shape)) == (None, HIDDEN)


def test_float_arithmetic_is_not_walked() -> None:
    """Forty adds that each read the one before twice would be 2^40 steps."""

    def write(g: Graph) -> str:
        y = "x"
        for _ in range(40):
            y = g.node("Tanh", g.node("Add", y, y))
        return g.node("Shape", y)

    assert folded(write) is None


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["Add", "Sub", "Mul", "Div"]), st.integers(1, 9)), max_size=6))
def test_any_arithmetic(steps: list[tuple[str, int]]) -> None:
    def write(g: Graph) -> str:
        value = size(g)
        for op, number in steps:
            value = g.node(op, value, one(g, number))
        return value

    expected = HIDDEN
    for op, number in steps:
        expected = {"Add": expected + number, "Sub": expected - number, "Mul": expected * number}.get(
            op, int(expected / number)
        )
    assert folded(write) == [expected]
