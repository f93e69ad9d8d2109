"""Chains in torch: the same function in every form, of the weights that it has."""

import pytest
import torch

from fxfuse.passes.forms import Form
from fxfuse.timing.shape import Shape
from fxfuse.timing.torch_runs import Chain, TorchRuns

SHAPE = Shape(16, (32, 64), bias=True)


@pytest.mark.parametrize("form", [None, Form(), Form("packed"), Form(slices=2), Form("packed", 2)], ids=str)
def test_a_chain_has_the_weights_of_its_form(form: Form | None):
    chain = Chain(SHAPE, form, torch.float32)
    matrices = [each for each in chain.parameters() if each.dim() == 2]
    assert sum(each.numel() for each in matrices) == SHAPE.parameters
    assert len(matrices) == {None: 6, "packed": 2}.get(form and form.products, 3)
    x = torch.randn(1, 3, 16)
    y = chain(x)
    assert y.shape == x.shape
    assert not torch.equal(x, y)


def test_slices_are_the_whole_cut_up():
    whole, cut = Chain(SHAPE, Form(), torch.float32), Chain(SHAPE, Form(slices=2), torch.float32)
    cut.load_state_dict(whole.state_dict())
    x = torch.randn(1, 3, 16)
    torch.testing.assert_close(whole(x), cut(x))


def test_a_run_opens_prepares_and_calls():
    runs = TorchRuns("eager", {}, "cpu", 1)
    runs.open(Shape(16, (32,), norm="layer", gated=False, activation="gelu"), Form())
    runs.prepare((3, 16, "float32"))
    assert runs.call().shape == (1, 3, 16)
    runs.wait()
    runs.close()
