"""Every form of an FFN, and every reason why something close to one is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fxfuse.passes.chains import find_chains
from fxfuse.passes.records import Linear
from tests.passes.graphs import (
    HIDDEN,
    TRACERS,
    Layer,
    Spec,
    Stack,
    example,
    find,
    fuse,
    lengths,
    parallel,
    reasons,
    run,
    symbolic,
)

FORMS = ["gated", "turned", "packed", "packed_turned", "ungated"]


class Written(Layer):
    """A layer whose FFN is `write(layer, norm(x))`, with spare parameters to write it with."""

    def __init__(self, write: Callable[..., Tensor], spec: Spec = Spec(bias=True)) -> None:  # noqa: B008
        super().__init__(spec)
        self.write = write
        self.vector = nn.Parameter(torch.randn(spec.width))
        self.scalar = nn.Parameter(torch.tensor(0.7))
        self.beta = nn.Parameter(torch.full((1,), 1.2))
        self.register_buffer("fixed", torch.tensor(0.9))
        self.drop = nn.Dropout(0.25)
        self.glu = nn.GLU()

    def branch(self, x: Tensor) -> Tensor:
        return self.write(self, self.norm(x))


def pair(write: Callable[..., Tensor], spec: Spec = Spec(bias=True)) -> Stack:  # noqa: B008
    return Stack([Written(write, spec), Written(write, spec)])


def gate(m: Written, h: Tensor) -> Tensor:
    return m.mlp.gate_proj(h)


def gated(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """down(function(gate(h)) * up(h)), where function reads gate(h) once or more."""
    return lambda m, h: down(m, function(gate(m, h)) * up(m, h))


def learned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same with the layer's own parameters at hand."""
    return lambda m, h: down(m, function(m, gate(m, h)) * up(m, h))


def up(m: Written, h: Tensor) -> Tensor:
    return m.mlp.up_proj(h)


def down(m: Written, y: Tensor) -> Tensor:
    return m.mlp.down_proj(y)


def flat(h: Tensor, bias: Tensor, weight: Tensor, **scales: float) -> Tensor:
    """addmm over all tokens at once"""
    return torch.addmm(bias, h.view(-1, HIDDEN), weight, **scales).view(2, 3, -1)


def parts(m: Written) -> list[Tensor]:
    return [m.mlp.gate_proj.weight, m.mlp.up_proj.weight, m.mlp.down_proj.weight]


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [False, True])
def test_every_form_in_every_graph(tracer: str, form: str, bias: bool) -> None:
    """x + f + g, f and g of unequal widths"""
    stack = Stack([Spec(form=form, bias=bias, width=12), Spec(form=form, bias=bias, width=5)])
    view = TRACERS[tracer](stack, example())
    (chain,) = find_chains(view).chains
    assert [block.intermediate_size for block in chain.blocks] == [12, 5]
    assert [block.gated for block in chain.blocks] == [form != "ungated"] * 2
    fused = run(fuse(view), example())
    torch.testing.assert_close(fused.double(), parallel(stack, example()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "write",
    [
        lambda m, h: down(m, F.silu(h @ parts(m)[0].t()) * (h @ parts(m)[1].T)),
        lambda m, h: torch.matmul(F.silu(gate(m, h)) * up(m, h), parts(m)[2].transpose(0, 1)),
        lambda m, h: F.linear(F.silu(F.linear(h, parts(m)[0])), parts(m)[2]),
        lambda m, h: down(m, F.silu(F.linear(h, parts(m)[0]) + m.vector) * up(m, h)),
        lambda m, h: down(m, m.drop(F.silu(gate(m, h)) * up(m, h))),
        lambda m, h: down(m, F.silu(m.drop(gate(m, h))) * up(m, h)),
        lambda m, h: m.drop(down(m, F.silu(gate(m, h)) * up(m, h))),
        lambda m, h: down(m, F.silu(gate(m, h) * m.vector) * (up(m, h) / m.vector.exp())),
        lambda m, h: down(m, 0.5 * F.silu(0.7 * gate(m, h)) * (2.0 * up(m, h))),
        lambda m, h: down(m, F.silu(gate(m, h) * m.fixed) * up(m, h)),
        lambda m, h: down(m, (F.silu(gate(m, h).float()) * up(m, h).float()).to(h.dtype)),
        lambda m, h: down(m, F.silu(gate(m, h).view(2, 1, 3, -1)).view(2, 3, -1) * up(m, h)),
        lambda m, h: down(m, F.silu(gate(m, h.view(-1, HIDDEN))) * up(m, h.reshape(-1, HIDDEN))).view(
            2, 3, HIDDEN
        ),
        lambda m, h: down(m, gate(m, h) * up(m, h)),
        lambda m, h: down(m, F.silu(gate(m, h)) * gate(m, h)),
        lambda m, h: down(m, F.silu(gate(m, h).contiguous(), inplace=True) * up(m, h)),
        lambda m, h: gated(lambda g: g.clamp(max=7.0) * torch.sigmoid(g))(m, h),
        lambda m, h: torch.mul(down(m, F.silu(gate(m, h)) * up(m, h)), 0.25),
        lambda m, h: down(m, F.silu(F.linear(h, parts(m)[0]) - m.vector) * up(m, h)) - m.mlp.down_proj.bias,
        lambda m, h: m.mlp.down_proj.bias - down(m, F.silu(m.vector - gate(m, h)) * -up(m, h)),
        lambda m, h: down(m, F.silu(flat(h, m.vector, parts(m)[0].t(), beta=0.5, alpha=2.0)) * up(m, h)),
        lambda m, h: down(m, F.silu(torch.bmm(h, parts(m)[0].t().expand(2, HIDDEN, 12))) * up(m, h)),
        lambda m, h: down(
            m, F.silu(torch.baddbmm(m.vector, h, parts(m)[0].t().expand(2, -1, -1))) * up(m, h)
        ),
        lambda m, h: torch.einsum("...i,oi->...o", F.silu(gate(m, h)) * up(m, h), parts(m)[2]),
        lambda m, h: torch.einsum(
            "oi,bsi->bso", parts(m)[2], F.silu(torch.tensordot(h, parts(m)[0], ([2], [1])))
        ),
        lambda m, h: down(m, F.silu(F.linear(h, 2.0 * parts(m)[0] + 1.0)) * up(m, h)),
        lambda m, h: down(m, F.silu(F.linear(h, F.normalize(parts(m)[0], dim=1))) * up(m, h)),
        lambda m, h: (lambda w: down(m, F.silu(F.linear(h, w[:12])) * F.linear(h, w[12:])))(
            torch.cat(parts(m)[:2])
        ),
        lambda m, h: down(m, F.silu(gate(m, h) * torch.full((1, 1, 1), 0.9)) * up(m, h)),
        lambda m, h: down(m, F.silu(gate(m, h)) * m.mlp.up_proj(h * 1.0)),
        lambda m, h: down(m, F.silu(gate(m, h))).view(6, HIDDEN).view(2, 3, 2, 4).flatten(-2),
    ],
)
def test_forms_written_by_hand(write: Callable[..., Tensor]) -> None:
    stack = pair(write)
    x = example()
    expected = x + stack.layers[0].branch(x) + stack.layers[1].branch(x)
    fused = fuse(symbolic(stack, x, shapes=True))
    assert len(list(fused.module.graph.find_nodes(op="get_attr", target="wide_0_gate"))) == 1
    torch.testing.assert_close(run(fused, x), expected, rtol=1e-5, atol=1e-5)


SPLITS = {
    "chunk": lambda y: y.chunk(2, dim=-1),
    "split by size": lambda y: y.split(6, -1),
    "split by sizes": lambda y: torch.split(y, [6, 6], dim=2),
    "tensor_split": lambda y: torch.tensor_split(y, 2, -1),
    "slices": lambda y: (y[..., :6], y[..., 6:]),
    "slices from the end": lambda y: (y[..., :-6], y[..., -6:]),
    "slices of every axis": lambda y: (y[:, :, :6], y[:, :, 6:]),
    "slices by half the width": lambda y: (y[..., : y.shape[-1] // 2], y[..., y.shape[-1] // 2 :]),
    "narrow": lambda y: (y.narrow(-1, 0, 6), torch.narrow(y, 2, 6, 6)),
    "tensor_split at an index": lambda y: torch.tensor_split(y, [6], -1),
    "an axis of two": lambda y: (y.unflatten(-1, (2, 6))[..., 0, :], y.view(2, 3, 2, 6).select(-2, 1)),
    "an axis of two, unbound": lambda y: y.view(2, 3, 2, 6).unbind(-2),
    "an axis of two, in pieces": lambda y: [each.squeeze(2) for each in y.view(2, 3, 2, 6).chunk(2, 2)],
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("bias", "tracer"), [("none", "dynamo"), ("before", "dynamo"), ("after", "dynamo"), ("before", "core")]
)
def test_packed_products(split: str, bias: str, tracer: str) -> None:
    spec = Spec(form="packed", bias=bias == "before", width=6)

    def write(m: Written, h: Tensor) -> Tensor:
        first, second = SPLITS[split](m.mlp.gate_up_proj(h))
        return down(m, F.silu(first + m.vector if bias == "after" else first) * second)

    stack, x = pair(write, spec), example()
    view = TRACERS[tracer](stack, x)
    (chain,) = find_chains(view).chains
    assert [row_range(linear) for linear in (chain.blocks[0].ffn.gate, chain.blocks[0].ffn.up)] == [
        (0, 6),
        (6, 12),
    ]
    expected = x + stack.layers[0].branch(x) + stack.layers[1].branch(x)
    torch.testing.assert_close(run(fuse(view), x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tracer", ["symbolic", "modules", "dynamo", "aten", "core"])
@pytest.mark.parametrize(
    "written", [lambda m, y: F.glu(y), lambda m, y: m.glu(y), lambda m, y: F.glu(y, dim=2)]
)
def test_glu_splits_by_itself(written, tracer: str) -> None:
    """a * sigmoid(b), where [a, b] is one product"""
    stack, x = (
        pair(lambda m, h: down(m, written(m, m.mlp.gate_up_proj(h))), Spec(form="packed", bias=True)),
        example(),
    )
    expected = x + stack.layers[0].branch(x) + stack.layers[1].branch(x)
    view = TRACERS[tracer](stack, x)
    (chain,) = find_chains(view).chains
    assert [block.ffn.activation.name for block in chain.blocks] == ["sigmoid"] * 2
    assert row_range(chain.blocks[0].ffn.gate) == (12, 24)
    torch.testing.assert_close(run(fuse(view), x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "split",
    [
        lambda y: (y[..., ::2], y[..., 1::2]),
        lambda y: y.unflatten(-1, (12, 2)).unbind(-1),
        lambda y: (y.view(2, 3, 12, 2)[..., 0], y.view(2, 3, 12, 2).select(-1, 1)),
    ],
)
def test_interleaved_halves_are_a_reason(split) -> None:
    def write(m: Written, h: Tensor) -> Tensor:
        first, second = split(m.mlp.gate_up_proj(h))
        return down(m, F.silu(first) * second)

    found = find_chains(TRACERS["dynamo"](pair(write, Spec(form="packed")), example()))
    assert not found.singles
    assert "between the first product and down_proj stands interleaved slice (" in reasons(found)


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("norm", ["rms", "layer_op"])
def test_gate_and_up_may_each_have_a_copy_of_the_norm(norm: str, tracer: str) -> None:
    spec = Spec(norm=norm, shift=norm == "layer_op")

    class Twice(Layer):
        def branch(self, x: Tensor) -> Tensor:
            return self.mlp.down_proj(
                F.silu(self.mlp.gate_proj(self.norm(x))) * self.mlp.up_proj(self.norm(x))
            )

    stack = Stack([Twice(spec), Twice(spec)])
    view = TRACERS[tracer](stack, example())
    assert lengths(find_chains(view)) == [2], reasons(find_chains(view))
    torch.testing.assert_close(
        run(fuse(view), example()).double(), parallel(stack, example()), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    "other",
    [
        lambda m, x: F.rms_norm(x, [HIDDEN], m.norm.weight, 1e-5),
        lambda m, x: F.rms_norm(x, [HIDDEN], m.norm.weight + 0.1, 1e-6),
        lambda m, x: F.rms_norm(x + 1.0, [HIDDEN], m.norm.weight, 1e-6),
        lambda m, x: F.layer_norm(x, [HIDDEN], m.norm.weight, None, 1e-6),
        lambda m, x: F.rms_norm(x, [HIDDEN], m.norm.weight, 1e-6) + 0.1,
        lambda m, x: F.dropout(F.rms_norm(x, [HIDDEN], m.norm.weight, 1e-6), 0.5),
    ],
)
def test_a_norm_that_is_almost_a_copy_is_none(other) -> None:
    class Twice(Layer):
        def branch(self, x: Tensor) -> Tensor:
            one = self.mlp.gate_proj(self.norm(x))
            return self.mlp.down_proj(F.silu(one) * self.mlp.up_proj(other(self, x)))

    found = find(Stack([Twice(Spec(norm="rms_op")), Twice(Spec(norm="rms_op"))]))
    assert not found.singles
    assert "gate and up read different values (" in reasons(found)


def row_range(linear: Linear | None) -> tuple[int, int] | None:
    return linear.rows if linear else None


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (
            lambda m, h: down(m, F.silu(gate(m, h)) * (up(m, h) + 1.0)),
            "the activation region is not of the form act(gate) * up",
        ),
        (
            lambda m, h: down(m, torch.softmax(gate(m, h), -1).cumsum(-1) * up(m, h)),
            "between the first product and down_proj stands cumsum (cumsum)",
        ),
        (
            lambda m, h: down(m, gate(m, h).roll(1, -1) * up(m, h)),
            "between the first product and down_proj stands roll (roll)",
        ),
        (
            lambda m, h: down(m, F.layer_norm(F.silu(gate(m, h)), [12]) * up(m, h)),
            "between the first product and down_proj stands layer_norm (layer_norm)",
        ),
        (
            lambda m, h: down(m, F.silu(gate(m, h)) * up(m, h).to(torch.int32)),
            "between the first product and down_proj stands to (to_2)",
        ),
        (
            lambda m, h: down(m, F.silu(gate(m, h)) * up(m, h) + F.linear(h, parts(m)[0] * 2.0)),
            "the activation region reads 3 products instead of one or two",
        ),
        (
            lambda m, h: down(m, F.silu(gate(m, h)) * up(m, h.sin())),
            "gate and up read different values (sin and mul_1)",
        ),
        (
            lambda m, h: down(m, F.silu(gate(m, h)) * m.vector * up(m, h)),
            "the activation has a constant per channel (layers_0_vector)",
        ),
        (
            learned(lambda m, g: torch.maximum(g, m.scalar * g)),
            "the activation has a learned parameter (layers_0_scalar)",
        ),
        (
            learned(lambda m, g: g * torch.sigmoid(m.beta * g)),
            "the activation has a learned parameter (layers_0_beta)",
        ),
        (
            learned(lambda m, g: g * torch.sigmoid((m.beta + 1.0) * g)),
            "the activation has a learned parameter (add_1)",
        ),
    ],
)
def test_reasons(write: Callable[..., Tensor], reason: str) -> None:
    found = find(pair(write))
    assert not found.chains
    assert not found.singles
    assert f"layers.0.mlp: {reason}" in reasons(found)


def test_a_graph_input_inside_is_a_reason() -> None:
    class Multiplied(Layer):
        def branch(self, x: Tensor) -> Tensor:
            return self.mlp.down_proj(F.silu(self.mlp.gate_proj(self.norm(x))) * x)

    found = find(Stack([Multiplied(Spec(width=HIDDEN))]))
    assert "between the first product and down_proj stands a graph input (x)" in reasons(found)


@pytest.mark.parametrize(
    "write",
    [
        lambda m, h: m.drop(down(m, F.silu(gate(m, h)) * up(m, h))),
        lambda m, h: down(m, m.drop(F.silu(gate(m, h)) * up(m, h))),
        lambda m, h: down(m, F.silu(m.drop(gate(m, h))) * up(m, h)),
        lambda m, h: down(m, F.silu(gate(m, h)) * F.dropout(up(m, h), 0.25)),
    ],
)
def test_active_dropout_is_a_reason(write: Callable[..., Tensor]) -> None:
    stack = pair(write)
    stack.train()
    found = find(stack)
    assert not found.chains
    assert "dropout (p=0.25) is active: call model.eval() first" in reasons(found)


def test_active_dropout_before_a_packed_split() -> None:
    def write(m: Written, h: Tensor) -> Tensor:
        first, second = m.drop(m.mlp.gate_up_proj(h)).chunk(2, -1)
        return down(m, F.silu(first) * second)

    stack = pair(write, Spec(form="packed"))
    assert lengths(find(stack)) == [2]
    assert "is active" in reasons(find(stack.train()))


@pytest.mark.parametrize(
    "write",
    [
        lambda m, h: down(m, gate(m, h)),
        lambda m, h: F.linear(h, parts(m)[2].T[:8]),
        lambda m, h: down(m, F.silu(F.linear(h, h[0, :1].expand(12, -1)))),
        lambda m, h: F.linear(F.silu(gate(m, h)), parts(m)[2], h.mean(1).mean(0)),
        lambda m, h: (
            torch.einsum("bsi,si->bsi", F.silu(gate(m, h)), parts(m)[2][:3]).sum(-1, keepdim=True) * h
        ),
        lambda m, h: F.silu(gate(m, h)).sum(-1, keepdim=True) * h,
        lambda m, h: down(m, F.silu(gate(m, h), inplace=True) * up(m, h)).mul_(
            gate(m, h).sum(-1, keepdim=True)
        ),
    ],
)
def test_what_is_no_ffn(write: Callable[..., Tensor]) -> None:
    found = find(pair(write))
    assert not found.chains
    assert not found.singles


def test_a_value_that_is_written_over_is_not_what_computed_it() -> None:
    def write(m: Written, h: Tensor) -> Tensor:
        first = gate(m, h)
        first.clamp_(max=0.1)
        return down(m, F.silu(first) * up(m, h))

    assert "down_proj stands linear that is written over (linear)" in reasons(find(pair(write)))


def test_attention_is_no_miss() -> None:
    def write(m: Written, h: Tensor) -> Tensor:
        return down(m, F.scaled_dot_product_attention(gate(m, h), up(m, h), up(m, h)))

    assert reasons(find(pair(write))) == ""


@settings(max_examples=25)
@given(
    form=st.sampled_from(FORMS),
    widths=st.lists(st.integers(1, 17), min_size=2, max_size=4),
    bias=st.booleans(),
    act=st.sampled_from(["silu", "gelu tanh by hand", "relu squared"]),
    multiplier=st.sampled_from([None, 0.5]),
    layer_scale=st.booleans(),
)
def test_any_stack_is_one_chain(form, widths, bias, act, multiplier, layer_scale) -> None:
    specs = [
        Spec(form=form, width=w, bias=bias, act=act, multiplier=multiplier, layer_scale=layer_scale)
        for w in widths
    ]
    stack, x = Stack(specs), example()
    view = symbolic(stack, x, shapes=True)
    assert lengths(find_chains(view)) == [len(widths)]
    torch.testing.assert_close(run(fuse(view), x).double(), parallel(stack, x), rtol=1e-5, atol=1e-5)
