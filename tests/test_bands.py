"""Products with weights of another type are those with the whole weight converted at once."""

from __future__ import annotations

import pytest
import torch

from fxfuse import bands
from fxfuse.bands import product


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_bands_change_no_product(monkeypatch, layout, stored, kind):
    monkeypatch.setattr(bands, "_BAND", 40)  # of 7 rows or columns, the last is a band of its own
    torch.manual_seed(0)
    weight = torch.randn(13, 7) if layout == "rows" else torch.randn(7, 13).T
    weight, x = weight.to(stored), torch.randn(2, 3, 7).to(kind)
    found = product(x, weight)
    assert (found.dtype, found.shape) == (kind, (2, 3, 13))
    resolution = torch.finfo(kind).eps
    expected = (x.double() @ weight.T.double()).to(kind)
    torch.testing.assert_close(found, expected, rtol=4 * resolution, atol=4 * resolution)


def test_a_part_of_a_weight_is_read_where_it_lies():
    packed = torch.randn(10, 4).half()
    x = torch.randn(5, 4).double()
    torch.testing.assert_close(product(x, packed[3:8]), x @ packed[3:8].double().T)
