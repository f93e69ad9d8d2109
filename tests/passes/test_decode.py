"""The decode step as two operators; what they compute on a CPU is what the kernels compute on a GPU."""

import pytest
import torch
from torch.nn import functional as F

import fxfuse
from fxfuse.passes.forms import Form
from fxfuse.passes.fx import decode
from tests.passes.graphs import Spec, Stack, example, parallel


@pytest.mark.parametrize("activation", decode.ACTIVATIONS)
def test_operators_compute_a_gated_ffn(activation: str) -> None:
    torch.manual_seed(0)
    x, gate, up, down = torch.randn(2, 3, 16), torch.randn(24, 16), torch.randn(24, 16), torch.randn(16, 24)
    hidden = F.rms_norm(x, (16,), None, 1e-6)
    expected = F.linear(decode.ACTIVATIONS[activation](F.linear(hidden, gate)) * F.linear(hidden, up), down)
    parts = decode.down(decode.gate_up(x, gate, up, 1e-6, activation), down)
    torch.testing.assert_close(parts.sum(0), expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("hidden", [256, 1000, 2048, 4096])
@pytest.mark.parametrize("activation", decode.ACTIVATIONS)
def test_kernels_against_float64(hidden: int, activation: str) -> None:
    make = {"device": "cuda", "dtype": torch.bfloat16}
    x, width = torch.randn(1, 1, hidden, **make), 3 * hidden + 40
    gate, up = (torch.randn(width, hidden, **make) * hidden**-0.5 for _ in range(2))
    down = torch.randn(hidden, width, **make) * width**-0.5
    found = decode.down(decode.gate_up(x, gate, up, 1e-6, activation), down).sum(0)
    unit = F.rms_norm(x.double(), (hidden,), None, 1e-6)
    inner = decode.ACTIVATIONS[activation](F.linear(unit, gate.double())) * F.linear(unit, up.double())
    expected = F.linear(inner, down.double())
    assert (found - expected).norm() / expected.norm() < 1e-2


def test_form_is_for_the_whole_ffn() -> None:
    assert str(Form.parse("kernel")) == "kernel"
    with pytest.raises(ValueError, match="takes a wide FFN whole"):
        Form("kernel", 2)


@pytest.mark.parametrize("tokens, form", [(1, "sums"), (2, "two")])
def test_products_as_sums_are_for_one_token(tokens: int, form: str) -> None:
    stack, x = Stack([Spec(), Spec(bias=True, width=20)]), example(batch=1, length=tokens)
    seen = fxfuse.reports()
    with torch.no_grad():
        options = {"min_sqnr": None, "form": "sums", "inner": "eager"}
        found = torch.compile(stack, backend=fxfuse.backend, options=options)(x)
    (report,) = fxfuse.reports()[len(seen) :]
    assert [group.form for group in report.groups] == [form]
    torch.testing.assert_close(found.double(), parallel(stack, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "form, reason",
    [
        (3, "must be a text such as"),
        ("three", "products of a form are one of"),
        ("two two", "is written as in"),
    ],
)
def test_what_is_no_form_is_told_before_any_work(form: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fxfuse.backend(None, [], options={"form": form})  # type: ignore[arg-type]
