"""Every way to write a norm, and values that only look like one."""

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
from fxfuse.passes.records import Norm
from fxfuse.passes.spellings.norms import match_norm
from tests.passes import onnx_graphs
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


def centred(z: Tensor, w: Tensor, eps: float) -> Tensor:
    return z * torch.rsqrt(mean_square(z) + eps) * w


def from_both(x: Tensor, w: Tensor, both: tuple[Tensor, Tensor], eps: float) -> Tensor:
    return (x - both[1]) * torch.rsqrt(both[0] + eps) * w


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
    "sum over the width": lambda x, w, eps: (
        x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / HIDDEN + eps) * w
    ),
    "axis dropped and put back": lambda x, w, eps: x * torch.rsqrt(x.pow(2).mean(-1) + eps).unsqueeze(-1) * w,
    "axis put back at once": lambda x, w, eps: x * torch.rsqrt(x.pow(2).mean(-1)[..., None] + eps) * w,
    "length over the root of the width": lambda x, w, eps: (
        x / torch.sqrt((x.norm(2, dim=-1, keepdim=True) * HIDDEN**-0.5) ** 2 + eps) * w
    ),
    "eps of three axes": lambda x, w, eps: x * torch.rsqrt(mean_square(x) + torch.full((1, 1, 1), eps)) * w,
    "eps added in place": lambda x, w, eps: x * torch.rsqrt(mean_square(x).add_(eps)) * w,
    "root in place": lambda x, w, eps: x * (mean_square(x) + eps).rsqrt_() * w,
    "factor broadcast": lambda x, w, eps: x * torch.rsqrt(mean_square(x) + eps).expand_as(x) * w,
    "gain broadcast": lambda x, w, eps: F.rms_norm(x, [HIDDEN], None, eps) * w.expand_as(x),
    "gain of three axes": lambda x, w, eps: F.rms_norm(x, [HIDDEN], None, eps) * w[None, None, :],
    "shape of the weight": lambda x, w, eps: F.rms_norm(x, w.shape, w, eps),
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
    "var(), unsqueezed": lambda x, w, eps: (
        (x - x.mean(-1).unsqueeze(-1)) * torch.rsqrt(x.var(-1, False).unsqueeze(-1) + eps) * w
    ),
    "var_mean()": lambda x, w, eps: from_both(x, w, torch.var_mean(x, -1, correction=0, keepdim=True), eps),
    "mean of squares less square of mean": lambda x, w, eps: (
        (x - x.mean(-1, keepdim=True))
        * torch.rsqrt((x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2 + eps)
        * w
    ),
    "mean by sum": lambda x, w, eps: centred(x - x.sum(-1, keepdim=True) / HIDDEN, w, eps),
    "less its mean, added": lambda x, w, eps: centred(-x.mean(-1, keepdim=True) + x, w, eps),
    "RMSNorm of x less its mean": lambda x, w, eps: F.rms_norm(
        x - x.mean(-1, keepdim=True), [HIDDEN], w, eps
    ),
    "native_layer_norm": lambda x, w, eps: torch.native_layer_norm(x, [HIDDEN], w, None, eps)[0],
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
    "centred, but not the squares": lambda x, w, eps: (
        (x - x.mean(-1, keepdim=True)) * torch.rsqrt(mean_square(x) + eps) * w
    ),
    "over two axes": lambda x, w, eps: F.rms_norm(x, [3, HIDDEN], None, eps) * w,
    "gain per row": lambda x, w, eps: F.rms_norm(x, [HIDDEN], None, eps) * w[:3, None],
    "turned round": lambda x, w, eps: x * (-1.0 * torch.rsqrt(mean_square(x) + eps)) * w,
    "falling scale": lambda x, w, eps: x * torch.exp(-mean_square(x)) * w,
    "eps as a floor": lambda x, w, eps: x / torch.sqrt(mean_square(x)).clamp(min=0.1) * w,
    "an axis dropped": lambda x, w, eps: x * torch.rsqrt(x.pow(2).mean(-1) + eps).sum() * w,
    "deviation plus eps": lambda x, w, eps: (
        (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, unbiased=False) + 0.1) * w
    ),
    "centred on another mean": lambda x, w, eps: (
        (x - x.tanh().mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + eps) * w
    ),
    "centred on half the mean": lambda x, w, eps: F.rms_norm(
        x - 0.5 * x.mean(-1, keepdim=True), [HIDDEN], w, eps
    ),
    "a variance that adds": lambda x, w, eps: (
        (x - x.mean(-1, keepdim=True))
        * torch.rsqrt((x * x).mean(-1, keepdim=True) + x.mean(-1, keepdim=True) ** 2 + eps)
        * w
    ),
    "a length of another axis": lambda x, w, eps: x / x.norm(dim=1, keepdim=True) * w,
    "the sum of absolutes": lambda x, w, eps: x / x.norm(p=1, dim=-1, keepdim=True) * w,
    "normalised over another axis": lambda x, w, eps: F.normalize(x, dim=1) * w,
}

# Norms that multiply by more than 1 / sqrt(m + eps), and by how much.
SCALED: dict[str, tuple[Write, float]] = {
    "twice": (lambda x, w, eps: x * (2.0 * torch.rsqrt(mean_square(x) + eps)) * w, 2.0),
    "normalize": (lambda x, w, eps: F.normalize(x, dim=-1) * HIDDEN**0.5 * w, HIDDEN**-0.5),
    "normalize, scale in the gain": (lambda x, w, eps: F.normalize(x, p=2.0, dim=2) * w, HIDDEN**-0.5),
    "over its length": (lambda x, w, eps: x / x.norm(dim=-1, keepdim=True) * w, HIDDEN**-0.5),
    "over its 2-norm": (lambda x, w, eps: x / x.norm(2, -1, True) * w, HIDDEN**-0.5),
    "over linalg.norm": (lambda x, w, eps: x / torch.linalg.norm(x, dim=-1, keepdim=True) * w, HIDDEN**-0.5),
    "over vector_norm": (
        lambda x, w, eps: x * torch.linalg.vector_norm(x, dim=-1, keepdim=True).reciprocal() * w, HIDDEN**-0.5
    ),
    "over the sum of squares": (
        lambda x, w, eps: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + eps) * w, HIDDEN**-0.5
    ),
    "over the unbiased variance": (
        lambda x, w, eps: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + eps) * w,
        (1 - 1 / HIDDEN) ** 0.5,
    ),
    "over the deviation": (
        lambda x, w, eps: (x - x.mean(-1, keepdim=True)) / torch.std(x, -1, keepdim=True) * w,
        (1 - 1 / HIDDEN) ** 0.5,
    ),
}  # fmt: skip


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
    assert not found.singles
    known = (
        "no norm stands before the FFN, which reads ",
        "what stands before the FFN is no norm that is known: ",
    )
    others = "the norm reads ", "the FFN reads "
    assert any(reason in reasons(found) for reason in (*known, *others))


@pytest.mark.parametrize("spelling", SCALED)
def test_a_norm_that_multiplies_keeps_its_factor(spelling: str) -> None:
    write, scale = SCALED[spelling]
    stack = Stack([Written(write, Spec(eps=1e-3)), Written(write, Spec(eps=1e-3))])
    view = symbolic(stack, example(), shapes=True)
    found = find_chains(view)
    assert lengths(found) == [2], reasons(found)
    assert found.chains[0].blocks[0].norm.scale == pytest.approx(scale, rel=1e-6)
    double, x = copy.deepcopy(stack).double(), example().double()
    expected = x + sum(layer.branch(x) for layer in double.layers)
    torch.testing.assert_close(run(fuse(view), example()).double(), expected, rtol=1e-5, atol=1e-5)


def test_norms_that_multiply_by_different_factors_cannot_be_shared() -> None:
    (once, _), (twice, _) = SCALED["over its length"], SCALED["twice"]
    layers = [Written(write, Spec(eps=0.0)) for write in (once, twice)]
    assert "scales of the norm differ from layers.0.mlp: 0.353553 and 2" in reasons(find(Stack(layers)))


@pytest.mark.parametrize("eps", ["buffer", "parameter", "row"])
@pytest.mark.parametrize("tracer", TRACERS)
def test_eps_may_be_a_tensor(tracer: str, eps: str) -> None:
    class Held(Layer):
        def __init__(self) -> None:
            super().__init__(Spec(eps=1e-3))
            self.register_buffer("buffer", torch.tensor(1e-3))
            self.register_buffer("row", torch.full((1, 1, 1), 1e-3))
            self.parameter = nn.Parameter(torch.tensor([1e-3]))

        def branch(self, x: Tensor) -> Tensor:
            return self.mlp(x * torch.rsqrt(mean_square(x) + getattr(self, eps)) * self.norm.weight)

    found = find_chains(TRACERS[tracer](Stack([Held(), Held()]), example()))
    assert lengths(found) == [2], reasons(found)
    assert found.chains[0].blocks[0].norm.eps == pytest.approx(1e-3, rel=1e-6)


def test_a_gain_for_each_position_is_no_gain() -> None:
    found = find(
        Stack([Written(lambda x, w, eps: F.rms_norm(x, [HIDDEN], None, eps) * x.new_ones(3, 1), Spec())])
    )
    assert not found.singles


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
    """y = x c / sqrt(m + eps), whatever the order of the product"""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            r = factor * torch.rsqrt(eps + mean_square(x))
            return r * x if flip else x * r

    view = symbolic(Net(), example(), shapes=True)
    output = view.module.graph.output_node().args[0]
    norm = match_norm(view, output, set())
    assert norm is not None
    assert norm.eps == pytest.approx(eps, rel=1e-5, abs=1e-14)
    assert norm.scale == pytest.approx(factor, rel=1e-6)


def test_a_trail_holds_what_is_inside() -> None:
    view = symbolic(Stack([Spec()]), example(), shapes=True)
    (block,) = find_chains(view).singles
    inside = {view.node_name(value) for value in block.interior}
    assert {"pow_1", "mean", "rsqrt", "mul", "linear", "silu", "linear_2"} <= inside
    assert not inside & {"x", view.node_name(block.out)}


# ONNX: the lengths and sums that exporters write


def onnx_unit(kind: str) -> Callable[..., str]:
    def write(g: onnx_graphs.Graph, x: str, block: onnx_graphs.Block) -> str:
        root = g.weight(HIDDEN**0.5)
        if kind == "normalize":  # as F.normalize is exported
            length = g.node("Clip", g.node("ReduceL2", x, g.ints(-1), keepdims=1), g.weight(1e-12))
            unit = g.node("Mul", g.node("Div", x, g.node("Expand", length, g.node("Shape", x))), root)
        elif kind == "length":
            unit = g.node("Mul", root, g.node("Div", x, g.node("ReduceL2", x, g.ints(2), keepdims=1)))
        else:
            op, summed = ("ReduceSum", g.node("Mul", x, x)) if kind == "sum" else ("ReduceSumSquare", x)
            total = g.node(op, summed, g.ints(-1), keepdims=1)
            safe = g.node("Add", g.node("Div", total, g.weight(float(HIDDEN))), g.weight(block.eps))
            unit = g.node("Div", x, g.node("Sqrt", safe))
        return str(g.node("Mul", unit, g.weight(block.gain)))

    return write


@pytest.mark.parametrize("kind", ["normalize", "length", "sum", "sum of squares"])
def test_lengths_and_sums_in_onnx(kind: str) -> None:
    g = onnx_graphs.Graph()
    eps = 1e-3 if kind.startswith("sum") else 0.0
    x = "x"
    for _ in range(2):
        x = g.block(x, g.new_block(eps=eps), norm=onnx_unit(kind))
    model, stream = g.model(x), onnx_graphs.example()
    found = onnx_graphs.find(model)
    assert onnx_graphs.lengths(found) == [2], onnx_graphs.reasons(found)
    fused = torch.from_numpy(onnx_graphs.run(onnx_graphs.fuse(model), stream)[0]).double()
    torch.testing.assert_close(fused, torch.from_numpy(g.parallel(stream)), rtol=1e-5, atol=1e-5)
