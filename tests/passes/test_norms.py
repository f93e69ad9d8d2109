"""Every way to write a norm, and values that only look like one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.passes.chains import find_chains
from fxfuse.passes.records import Norm
from fxfuse.passes.spellings.norms import match_norm
from tests.passes.graphs import (
    HIDDEN,
    TRACERS,
    Layer,
    Spec,
    Stack,
    branch,
    example,
    find,
    fuse,
    lengths,
    parallel,
    reasons,
    run,
    symbolic,
)

Write = Callable[[Tensor, Tensor, float], Tensor]


class Written(Layer):
    """A layer whose norm is `write(x, weight, eps)`."""

    def __init__(self, write: Write, spec: Spec) -> None:
        super().__init__(spec)
        self.write = write

    def branch(self, x: Tensor) -> Tensor:
        return self.mlp(self.write(x, self.norm.weight, self.spec.eps))


def mean_square(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


RMS: dict[str, Write] = {
    "x * rsqrt": lambda x, w, eps: w * (x * torch.rsqrt(mean_square(x) + eps)),
    "rsqrt * x": lambda x, w, eps: (torch.rsqrt(eps + mean_square(x)) * x) * w,
    "x / sqrt": lambda x, w, eps: x / torch.sqrt(mean_square(x) + eps) * w,
    "x * (1 / sqrt)": lambda x, w, eps: x * (1.0 / torch.sqrt(mean_square(x) + eps)) * w,
    "x * reciprocal": lambda x, w, eps: x * torch.reciprocal(torch.sqrt(mean_square(x) + eps)) * w,
    "x * m ** -0.5": lambda x, w, eps: x * (mean_square(x) + eps) ** -0.5 * w,
    "square of x * x": lambda x, w, eps: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * w,
    "square()": lambda x, w, eps: x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * w,
    "positive axis": lambda x, w, eps: x * torch.rsqrt(x.pow(2).mean(2, keepdim=True) + eps) * w,
    "axis in a list": lambda x, w, eps: x * torch.rsqrt(x.pow(2).mean([-1], keepdim=True) + eps) * w,
    "in float32, gain after": lambda x, w, eps: (
        w * (x.float() * torch.rsqrt(mean_square(x.float()) + eps)).to(x.dtype)
    ),
    "in float32, gain before": lambda x, w, eps: (
        w.float() * (x.float() * torch.rsqrt(mean_square(x.float()) + eps))
    ).type_as(x),
    "two casts": lambda x, w, eps: (
        (x.double() * torch.rsqrt(mean_square(x.to(torch.float64)) + eps)).float() * w
    ),
    "function": lambda x, w, eps: F.rms_norm(x, [HIDDEN], w, eps),
    "function, gain apart": lambda x, w, eps: F.rms_norm(x, [HIDDEN], None, eps) * w,
    "function by keyword": lambda x, w, eps: F.rms_norm(x, normalized_shape=[HIDDEN], weight=w, eps=eps),
    "gain divided by 1": lambda x, w, eps: F.rms_norm(x, [HIDDEN], None, eps) / (1.0 / w),
    "gain in two steps": lambda x, w, eps: F.rms_norm(x, [HIDDEN], w, eps) * 2.0 * 0.5,
}

LAYER: dict[str, Write] = {
    "variance of x - mean": lambda x, w, eps: (
        (x - x.mean(-1, keepdim=True)) * torch.rsqrt(mean_square(x - x.mean(-1, keepdim=True)) + eps) * w
    ),
    "var()": lambda x, w, eps: (
        (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + eps) * w
    ),
    "var(correction=0)": lambda x, w, eps: (
        (x - x.mean(-1, keepdim=True))
        / torch.sqrt(torch.var(x, dim=-1, keepdim=True, correction=0) + eps)
        * w
    ),
    "function": lambda x, w, eps: F.layer_norm(x, [HIDDEN], w, None, eps),
    "function without gain": lambda x, w, eps: w * F.layer_norm(x, [HIDDEN], eps=eps),
}

# Not RMSNorm of the stream, and why.
OTHERS: dict[str, Write] = {
    "eps outside the root": lambda x, w, eps: x / (torch.sqrt(mean_square(x)) + 0.1) * w,
    "another axis": lambda x, w, eps: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + eps) * w,
    "cube": lambda x, w, eps: x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True).abs() + eps) * w,
    "square of another value": lambda x, w, eps: x * torch.rsqrt(mean_square(x + 1.0) + eps) * w,
    "product of two values": lambda x, w, eps: (
        x * torch.rsqrt((x * (x + 1.0)).mean(-1, keepdim=True) + 9.0) * w
    ),
    "mean of |x|": lambda x, w, eps: x / (x.abs().mean(-1, keepdim=True) + eps) * w,
    "unbiased variance": lambda x, w, eps: (
        (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + eps) * w
    ),
    "centred, but not the squares": lambda x, w, eps: (
        (x - x.mean(-1, keepdim=True)) * torch.rsqrt(mean_square(x) + eps) * w
    ),
    "over two axes": lambda x, w, eps: F.rms_norm(x, [3, HIDDEN], None, eps) * w,
    "gain per row": lambda x, w, eps: F.rms_norm(x, [HIDDEN], None, eps) * w[:3, None],
    "norm of another length": lambda x, w, eps: x * (2.0 * torch.rsqrt(mean_square(x) + eps)) * w,
    "turned round": lambda x, w, eps: x * (-1.0 * torch.rsqrt(mean_square(x) + eps)) * w,
    "falling scale": lambda x, w, eps: x * torch.exp(-mean_square(x)) * w,
}


@pytest.mark.parametrize("spelling", RMS)
def test_rms_norm(spelling: str) -> None:
    check("rms", RMS[spelling], Spec(eps=1e-3))


@pytest.mark.parametrize("spelling", LAYER)
def test_layer_norm(spelling: str) -> None:
    check("layer", LAYER[spelling], Spec(norm="layer", eps=1e-3))


def check(kind: str, write: Write, spec: Spec) -> None:
    """Equals x + f + g where f, g read the norm that the hand-written oracle computes."""
    stack = Stack([Written(write, spec), Written(write, spec)])
    view = symbolic(stack, example(), shapes=True)
    found = find_chains(view)
    assert lengths(found) == [2], reasons(found)
    norm = found.chains[0].blocks[0].norm
    assert (norm.kind, norm.eps) == (kind, pytest.approx(1e-3))
    torch.testing.assert_close(
        run(fuse(view), example()).double(), parallel(stack, example()), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("spelling", OTHERS)
def test_what_is_no_norm(spelling: str) -> None:
    found = find(Stack([Written(OTHERS[spelling], Spec()), Written(OTHERS[spelling], Spec())]))
    assert not found.chains
    assert "no norm stands before the FFN, which reads " in reasons(found)


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        (Spec(gain="none"), []),
        (Spec(), ["mul"]),
        (Spec(norm="layer", shift=True), ["mul", "add"]),
        (Spec(norm="layer_op", shift=True), ["mul", "add"]),
        (Spec(norm="layer_op", gain="none", shift=True), ["add"]),
    ],
)
def test_gain_steps_come_in_order(spec: Spec, steps: list[str]) -> None:
    norm = only_norm(spec)
    assert [step.kind for step in norm.gain] == steps


def test_the_unit_norm_is_the_value_before_the_gain() -> None:
    by_hand, operator = only_norm(Spec()), only_norm(Spec(norm="rms_op"))
    assert (by_hand.unit is not None, by_hand.operator) == (True, None)
    assert (operator.unit, operator.operator is not None) == (None, True)
    assert only_norm(Spec(norm="rms_op", gain="none")).unit is not None


def only_norm(spec: Spec) -> Norm:
    (block,) = find(Stack([spec])).singles
    return block.norm


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_eps_left_out_is_the_resolution_torch_computes_in(tracer: str, dtype: torch.dtype) -> None:
    """rms_norm(x, eps=None) of float16 is computed in float32, with float32's resolution."""

    class Default(Layer):
        def __init__(self) -> None:
            super().__init__(Spec(eps=torch.finfo(torch.float32).eps))
            self.norm = nn.RMSNorm(HIDDEN)

    stack = Stack([Default()], dtype)
    x = 1e-3 * example(dtype)
    (block,) = find_chains(TRACERS[tracer](stack, x)).singles
    assert block.norm.eps == pytest.approx(torch.finfo(torch.float32).eps, rel=1e-3)
    expected = branch(stack.layers[0], x)
    torch.testing.assert_close(stack.layers[0].branch(x).double(), expected, rtol=0.02, atol=0.02)


def test_no_eps_is_zero() -> None:
    found = find(Stack([Written(lambda x, w, _: w * (x * torch.rsqrt(mean_square(x))), Spec())]))
    assert found.singles[0].norm.eps == 0.0


@settings(max_examples=30)
@given(
    eps=st.sampled_from([0.0, 1e-8, 1e-6, 1e-5, 1e-3]),
    factor=st.sampled_from([1.0, 0.5, 3.0]),
    flip=st.booleans(),
)
def test_eps_is_read_off(eps: float, factor: float, flip: bool) -> None:
    """y = x c / sqrt(m + eps) is a norm for c = 1, whatever the order of the product"""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            r = factor * torch.rsqrt(eps + mean_square(x))
            return r * x if flip else x * r

    view = symbolic(Net(), example(), shapes=True)
    output = view.module.graph.output_node().args[0]
    norm = match_norm(view, output, set())
    assert (norm is not None) == (factor == 1.0)
    assert norm is None or norm.eps == pytest.approx(eps, rel=1e-5, abs=1e-14)


def test_a_trail_holds_what_is_inside() -> None:
    view = symbolic(Stack([Spec()]), example(), shapes=True)
    (block,) = find_chains(view).singles
    inside = {view.node_name(value) for value in block.interior}
    assert {"pow_1", "mean", "rsqrt", "mul", "linear", "silu", "linear_2"} <= inside
    assert not inside & {"x", view.node_name(block.out)}
