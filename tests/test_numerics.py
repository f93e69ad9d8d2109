"""The figures against their definitions, and at the edges: zeros, infinity, NaN, sixteen bits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxfuse.numerics import MAX_DB, end_to_end, group_error, is_finite, relative_error


def test_relative_error() -> None:
    """|(3, 4)| / |(6, 8)| = 0.5"""
    assert relative_error(torch.tensor([9.0, 12.0]), torch.tensor([6.0, 8.0])) == pytest.approx(0.5)
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0.0
    assert relative_error(torch.ones(3), torch.zeros(3)) > 1e100
    assert math.isnan(relative_error(torch.tensor([math.nan]), torch.ones(1)))


def test_relative_error_of_half_precision_is_computed_in_float64() -> None:
    large = torch.full((4096,), 60000.0, dtype=torch.float16)
    assert relative_error(large, large) == 0.0
    assert relative_error(large * 0, large) == pytest.approx(1.0)


def test_group_error_by_hand() -> None:
    """Update (10, 0), noise (0, 1): 20 dB, 1 / |(13, 4)|, and the cosine of (13, 5) and (13, 4)."""
    start, end, fused = (torch.tensor([[value]]) for value in ([3.0, 4.0], [13.0, 4.0], [13.0, 5.0]))
    error = group_error([start], [end], [fused])
    assert error.sqnr_db == pytest.approx(20.0)
    assert error.relative_error == pytest.approx(1 / math.sqrt(185))
    assert error.cosine == pytest.approx(189 / math.sqrt(194 * 185))


@pytest.mark.parametrize(
    ("end", "fused", "decibels"),
    [
        ([1.0, 2.0], [1.0, 2.0], MAX_DB),
        ([0.0, 0.0], [0.0, 0.0], MAX_DB),
        ([0.0, 0.0], [1.0, 0.0], -MAX_DB),
        ([1.0, 0.0], [math.nan, 0.0], -MAX_DB),
        ([1.0, 0.0], [math.inf, 0.0], -MAX_DB),
        ([math.inf, 0.0], [math.inf, 0.0], -MAX_DB),
        ([1e-3, 0.0], [1e30, 0.0], -MAX_DB),
    ],
)
def test_decibels_at_the_edges(end: list[float], fused: list[float], decibels: float) -> None:
    start = torch.zeros(1, 2)
    assert group_error([start], [torch.tensor([end])], [torch.tensor([fused])]).sqnr_db == decibels


@given(st.integers(0, 2**31), st.integers(1, 5), st.floats(1e-3, 1.0))
def test_samples_count_by_token(seed: int, count: int, size: float) -> None:
    """The error of several samples is that of all their tokens in one."""
    generator = torch.Generator().manual_seed(seed)
    starts, ends = ([torch.randn(n + 1, 4, generator=generator) for n in range(count)] for _ in range(2))
    fused = [end + size * torch.randn(end.shape, generator=generator) for end in ends]
    split = group_error(starts, ends, fused)
    whole = group_error(*([torch.cat(each)] for each in (starts, ends, fused)))
    assert split.sqnr_db == pytest.approx(whole.sqnr_db)
    assert split.relative_error == pytest.approx(whole.relative_error)
    assert split.cosine == pytest.approx(whole.cosine)


def test_end_to_end_by_hand() -> None:
    """KL((1/2, 1/2) || (3/4, 1/4)) = ln 2 - ln 3 / 2"""
    p, q = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.75, 0.25]]))
    result = end_to_end("logits", [p, q], [q, q], logits=True)
    assert (result.output, result.tokens, result.top1_agreement) == ("logits", 2, 1.0)
    assert result.kl == pytest.approx((math.log(2) - math.log(3) / 2) / 2)


def test_logits_may_have_any_offset() -> None:
    logits = torch.randn(2, 3, 7, dtype=torch.float64)
    result = end_to_end("logits", [logits], [logits + 4.0], logits=True)
    assert (result.tokens, result.top1_agreement) == (6, 1.0)
    assert result.kl == pytest.approx(0.0, abs=1e-12)
    assert result.kl >= 0.0
    assert result.relative_error > 0


def test_an_output_that_is_no_logits_has_neither_kl_nor_agreement() -> None:
    result = end_to_end("hidden", [torch.ones(2, 3)], [2 * torch.ones(2, 3)], logits=False)
    assert (result.kl, result.top1_agreement, result.relative_error) == (None, None, 1.0)


def test_top1_agreement_is_a_share_of_tokens() -> None:
    one, other = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    assert end_to_end("logits", [one], [other], logits=True).top1_agreement == 0.5


def test_is_finite() -> None:
    assert is_finite([])
    assert is_finite([torch.ones(2), torch.tensor([1, 2])])
    assert not is_finite([torch.ones(2), torch.tensor([math.inf])])
    assert not is_finite([torch.tensor([math.nan], dtype=torch.bfloat16)])
