"""The float64 judge against the oracle that is written by hand, and against the graph itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxfuse.passes.chains import find_chains
from fxfuse.reference import branch, parallel
from tests.passes import graphs
from tests.passes.graphs import Spec, Stack, example, symbolic

FORMS = ["gated", "turned", "packed", "packed_turned", "ungated"]
SPECS = st.builds(
    Spec,
    norm=st.sampled_from(["rms", "layer", "rms_op", "layer_op"]),
    gain=st.sampled_from(["gain", "none", "plus_one"]),
    eps=st.sampled_from([1e-6, 1e-3]),
    act=st.sampled_from(["silu", "gelu tanh by hand", "relu squared", "nameless"]),
    form=st.sampled_from(FORMS),
    bias=st.booleans(),
    width=st.integers(1, 9),
    multiplier=st.sampled_from([None, 0.5]),
    layer_scale=st.booleans(),
)


@settings(max_examples=60)
@given(SPECS)
def test_a_branch_is_what_the_oracle_says(spec: Spec) -> None:
    stack, x = Stack([spec]), example()
    view = symbolic(stack, x, shapes=True)
    (block,) = find_chains(view).singles
    expected = graphs.branch(stack.layers[0], x)
    torch.testing.assert_close(branch(view, block, x, torch.float64), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_in_the_models_own_type_it_rounds_as_the_model_does(dtype: torch.dtype, form: str) -> None:
    stack, x = Stack([Spec(form=form, bias=True)], dtype), example(dtype)
    view = graphs.dynamo(stack, x)
    (block,) = find_chains(view).singles
    own = branch(view, block, x, dtype)
    assert own.dtype == dtype
    exact = branch(view, block, x, torch.float64)
    resolution = torch.finfo(dtype).eps
    torch.testing.assert_close(own.double(), exact, rtol=16 * resolution, atol=16 * resolution)
    torch.testing.assert_close(own, stack.layers[0].branch(x), rtol=4 * resolution, atol=4 * resolution)


@pytest.mark.parametrize("shift", [False, True])
def test_parallel_is_the_sum_on_one_stream(shift: bool) -> None:
    spec = Spec(norm="layer_op", shift=shift, bias=True)
    stack, x = Stack([spec, spec, Spec(norm="layer", form="packed", width=3)]), example()
    view = symbolic(stack, x, shapes=True)
    (chain,) = find_chains(view).chains
    total = parallel(view, chain.blocks, x, torch.float64)
    torch.testing.assert_close(x + total, graphs.parallel(stack, x), rtol=1e-10, atol=1e-10)
    assert total.shape == x.shape


def test_any_leading_axes() -> None:
    view = symbolic(Stack([Spec(), Spec()]), example(), shapes=True)
    blocks, x = find_chains(view).chains[0].blocks, example()
    flat = parallel(view, blocks, x.flatten(0, 1), torch.float64)
    torch.testing.assert_close(flat.view(x.shape), parallel(view, blocks, x, torch.float64))
