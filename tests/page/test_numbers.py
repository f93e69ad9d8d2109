"""Figures as they are printed."""

import math

import pytest

from fxfuse.page.numbers import count, figure, known, percent, power, with_error


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (0.0, "0"),
        (0.0175, "0.0175"),
        (-0.5, "−0.500"),
        (12.345, "12.3"),
        (1234.5, "1,230"),
        (0.9996, "1.00"),
        (1.7e-5, "1.70 × 10⁻⁵"),
        (4.2e7, "4.20 × 10⁷"),
    ],
)
def test_three_digits(value, text):
    assert figure(value) == text


@pytest.mark.parametrize(
    "value, error, text",
    [
        (0.0175, 0.00052, "0.0175 ± 0.0005"),
        (0.0175, 0.0013, "0.0175 ± 0.0013"),
        (1.3121, 0.0041, "1.312 ± 0.004"),
        (0.2, 0.5, "0.2 ± 0.5"),
        (-0.01, 0.003, "−0.010 ± 0.003"),
        (1.7e-5, 2e-6, "(1.7 ± 0.2) × 10⁻⁵"),
        (1234.0, 56.0, "1,234 ± 56"),
        (0.0175, None, "0.0175"),
        (0.0175, math.nan, "0.0175"),
        (0.0175, 0.0, "0.0175"),
        (None, 0.1, "–"),
        (0.0, 0.002, "0.000 ± 0.002"),
    ],
)
def test_digits_end_where_the_error_begins(value, error, text):
    assert with_error(value, error) == text


def test_counts_shares_and_powers():
    assert [count(1234567), count(None), count(-3)] == ["1,234,567", "–", "−3"]
    assert [percent(0.9871), percent(None), percent(math.nan)] == ["98.7 %", "–", "–"]
    assert power(-12) == "10⁻¹²"


def test_only_finite_numbers_are_known():
    assert [known(value) for value in (None, math.nan, math.inf, 0.0, 1)] == [False, False, False, True, True]
