"""The algebra of the wide FFN against the parallel sum, written by hand in float64.

D_w act(G_w n(x) + b_w) * (U_w n(x) + c_w) + d_w    =    sum of FFN_i(norm_i(x))
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fxfuse.passes import filling
from fxfuse.passes.chains import find_chains
from fxfuse.passes.fx.view import Attribute
from fxfuse.passes.records import Step
from fxfuse.passes.weights import Wide, refill, sources, widen
from tests.passes.graphs import ACTS, HIDDEN, TRACERS, Spec, Stack, branch, example, symbolic
from tests.passes.graphs import find_chains as find

FORMS = st.sampled_from(["gated", "packed", "packed_turned"])


def wide_of(stack: Stack, tracer: str = "symbolic") -> Wide:
    dtype = next(stack.parameters()).dtype
    view = TRACERS[tracer](stack, example(dtype))
    (chain,) = find_chains(view).chains
    return widen(view, chain.blocks)


def applied(wide: Wide, spec: Spec, x: Tensor) -> Tensor:
    """The wide FFN on the norm without gain, in float64."""
    tensors = {name: value.double() for name, value in wide.tensors().items()}
    h = x.double()
    if spec.norm.startswith("layer"):
        h = h - h.mean(-1, keepdim=True)
    h = h / torch.sqrt(h.square().mean(-1, keepdim=True) + spec.eps)
    inner = ACTS[spec.act][0](F.linear(h, tensors["gate"], tensors.get("gate_bias")))
    if "up" in tensors:
        inner = inner * F.linear(h, tensors["up"], tensors.get("up_bias"))
    return F.linear(inner, tensors["down"], tensors.get("down_bias"))


@st.composite
def stacks(draw: st.DrawFn) -> list[Spec]:
    """Blocks that may share a wide FFN, and differ in all that may differ."""
    kind, act = (
        draw(st.sampled_from(["rms", "layer"])),
        draw(st.sampled_from(["silu", "gelu", "relu squared"])),
    )
    ungated = draw(st.booleans())
    return [
        Spec(
            norm=draw(st.sampled_from([kind, f"{kind}_op"])),
            gain=draw(st.sampled_from(["gain", "none", "plus_one"])),
            shift=kind == "layer" and draw(st.booleans()),
            act=act,
            form="ungated" if ungated else draw(FORMS),
            bias=draw(st.booleans()),
            width=draw(st.integers(1, 13)),
            add=draw(st.sampled_from(["x+f", "f+x"])),
            multiplier=draw(st.sampled_from([None, 0.25, -1.5])),
            layer_scale=draw(st.booleans()),
        )
        for _ in range(draw(st.integers(2, 4)))
    ]


@settings(max_examples=80)
@given(stacks(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_a_wide_ffn_is_the_sum_of_ffns(specs: list[Spec], dtype: torch.dtype) -> None:
    stack, x = Stack(specs, dtype), example()
    wide = wide_of(stack)
    assert wide.gate.shape == (sum(spec.width for spec in specs), HIDDEN)
    assert {tensor.dtype for tensor in wide.tensors().values()} == {dtype}
    expected = sum(branch(layer, x) for layer in stack.layers)
    # Each folded weight is rounded once, and at most some hundred of them meet in one number.
    resolution = torch.finfo(dtype).eps
    bound = 16 * resolution * float(expected.abs().max())
    torch.testing.assert_close(applied(wide, specs[0], x), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("tracer", TRACERS)
def test_every_graph_gives_the_same_weights(tracer: str) -> None:
    specs = [
        Spec(norm="layer_op", shift=True, bias=True, form="packed", layer_scale=True, multiplier=0.5),
        Spec(norm="layer", shift=True, gain="plus_one", width=3),
    ]
    stack = Stack(specs)
    expected = wide_of(stack)
    for name, tensor in wide_of(stack, tracer).tensors().items():
        torch.testing.assert_close(tensor, getattr(expected, name), rtol=1e-6, atol=1e-7, msg=name)


def test_rows_and_columns_by_hand() -> None:
    """G = [G1 diag(g1); G2 diag(g2)], D = [s D1, s D2]"""
    stack = Stack([Spec(width=3, multiplier=0.5), Spec(width=2, multiplier=0.5)])
    wide = wide_of(stack)
    first, second = stack.layers
    gates = [layer.mlp.gate_proj.weight * layer.norm.weight for layer in (first, second)]
    torch.testing.assert_close(wide.gate, torch.cat(gates))
    torch.testing.assert_close(
        wide.down, 0.5 * torch.cat([first.mlp.down_proj.weight, second.mlp.down_proj.weight], 1)
    )


def test_biases_by_hand() -> None:
    """b = G c + b, down biases summed and multiplied"""
    specs = [Spec(norm="layer", shift=True, bias=True, layer_scale=True), Spec(norm="layer")]
    stack = Stack(specs)
    wide = wide_of(stack)
    first = stack.layers[0]
    gate = first.mlp.gate_proj
    torch.testing.assert_close(wide.gate_bias[:12], gate.weight @ first.norm.bias + gate.bias)
    assert wide.gate_bias[12:].abs().max() == 0
    torch.testing.assert_close(wide.down_bias, first.scale * first.mlp.down_proj.bias)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (Spec(), {"gate", "up", "down"}),
        (Spec(form="ungated"), {"gate", "down"}),
        (Spec(form="ungated", bias=True), {"gate", "down", "gate_bias", "down_bias"}),
        (Spec(bias=True), {"gate", "up", "down", "gate_bias", "up_bias", "down_bias"}),
        (Spec(norm="layer", shift=True), {"gate", "up", "down", "gate_bias", "up_bias"}),
    ],
)
def test_there_is_a_bias_where_one_is_needed(spec: Spec, names: set[str]) -> None:
    assert set(wide_of(Stack([Spec(norm=spec.norm, form=spec.form), spec])).tensors()) == names


def test_weights_without_anything_to_fold_stay_as_they_are() -> None:
    stack = Stack([Spec(gain="none", width=3), Spec(gain="none", form="packed", width=4)], torch.bfloat16)
    wide = wide_of(stack)
    first, second = (layer.mlp for layer in stack.layers)
    assert torch.equal(wide.gate, torch.cat([first.gate_proj.weight, second.gate_up_proj.weight[:4]]))
    assert torch.equal(wide.up, torch.cat([first.up_proj.weight, second.gate_up_proj.weight[4:]]))
    assert torch.equal(wide.down, torch.cat([first.down_proj.weight, second.down_proj.weight], 1))


def test_folding_rounds_once() -> None:
    """g W is rounded from float64, not from a product of rounded factors."""
    stack = Stack([Spec(layer_scale=True, multiplier=0.3, gain="plus_one")] * 2, torch.float16)
    wide = wide_of(stack)
    layer = stack.layers[0]
    exact = layer.mlp.gate_proj.weight.double() * (layer.norm.weight.double() + 1.0)
    assert torch.equal(wide.gate[:12], exact.half())
    down = layer.mlp.down_proj.weight.double() * 0.3 * layer.scale.double()[:, None]
    assert torch.equal(wide.down[:, :12], down.half())


@pytest.mark.parametrize("piece", [1, 8, 24])
def test_slices_give_the_same(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    stack = Stack([Spec(layer_scale=True), Spec(width=5)])
    whole = wide_of(stack)
    monkeypatch.setattr(filling, "_SLICE", piece)
    for name, tensor in wide_of(stack).tensors().items():
        assert torch.equal(tensor, getattr(whole, name))


def test_refill_follows_the_sources_in_place() -> None:
    stack = Stack([Spec(norm="layer", shift=True, bias=True), Spec(norm="layer", form="packed")])
    view = symbolic(stack, example(), shapes=True)
    blocks = find_chains(view).chains[0].blocks
    wide = widen(view, blocks)
    pointers = {name: tensor.data_ptr() for name, tensor in wide.tensors().items()}
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.mul_(1.5).add_(0.01)
    refill(view, blocks, wide)
    assert {name: tensor.data_ptr() for name, tensor in wide.tensors().items()} == pointers
    for name, tensor in widen(view, blocks).tensors().items():
        assert torch.equal(tensor, getattr(wide, name))


@pytest.mark.parametrize("tracer", ["symbolic", "modules", "dynamo"])
def test_sources_are_all_parameters_of_the_blocks(tracer: str) -> None:
    specs = [
        Spec(norm="layer_op", shift=True, bias=True, layer_scale=True),
        Spec(norm="layer", form="packed"),
    ]
    stack = Stack(specs)
    view = TRACERS[tracer](stack, example())
    found = sources(view, find_chains(view).chains[0].blocks)
    assert {id(view.stored(value)) for value in found} == {id(each) for each in stack.parameters()}
    assert len(found) == len(set(found))
    assert all(isinstance(value, Attribute) or view.op(value) is None for value in found)


def test_divisors_and_orders_of_steps() -> None:
    """(y + b) / v is not y / v + b"""
    view = symbolic(Stack([Spec(layer_scale=True)]), example(), shapes=True)
    (block,) = find(view).singles
    (scale,) = (step.operand for step in block.ffn.down.steps)
    steps = (Step("add", 2.0), Step("div", scale), Step("mul", 3.0), Step("add", 1.0))
    factor, offset = filling.affine(view, steps, HIDDEN, torch.device("cpu"))
    v = view.stored(scale).double()
    torch.testing.assert_close(factor, 3.0 / v)
    torch.testing.assert_close(offset, 6.0 / v + 1.0)
