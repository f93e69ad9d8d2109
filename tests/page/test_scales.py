"""Scales, ticks and labels that keep apart."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxfuse.page.scales import Linear, Log, linear_over, log_over, nice_step, spread, thinned


def test_a_linear_scale_maps_its_ends():
    scale = Linear(2, 6, 100, 20)
    assert [scale(2), scale(4), scale(6)] == [100, 60, 20]


def test_a_log_scale_maps_its_ends_and_what_it_cannot_show():
    scale = Log(1e-4, 1.0, 200, 0, zero=215)
    assert scale(1e-4) == 200
    assert scale(1e-2) == pytest.approx(100)
    assert scale(1.0) == 0
    assert scale(0.0) == scale(-3.0) == 215
    assert scale(1e-9) == 200


def test_ticks_of_a_log_scale_are_powers_of_ten_and_zero():
    labels = [text for _, text in Log(1e-5, 0.02, 200, 0, zero=215).ticks()]
    assert labels == ["10⁻⁵", "10⁻⁴", "0.001", "0.01", "0"]


def test_a_short_log_scale_has_ticks_between():
    assert [text for _, text in Log(0.01, 0.1, 200, 0).ticks()] == ["0.01", "0.02", "0.05", "0.1"]
    assert [text for _, text in Log(1e-5, 3e-5, 200, 0).ticks()] == ["10⁻⁵", "2·10⁻⁵"]


def test_whole_ticks_are_whole():
    assert [text for _, text in linear_over([1, 3], 0, 880, whole=True).ticks()] == ["1", "2", "3"]


@given(st.lists(st.floats(-1e6, 1e9), min_size=1, max_size=20), st.booleans())
def test_every_value_lies_within_its_scale(values, whole):
    scale = linear_over(values, 50, 800, whole)
    assert all(50 <= scale(value) <= 800 for value in values)
    assert len(scale.ticks()) <= 40


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_every_value_lies_within_its_log_scale(values):
    scale = log_over(values, 300, 20, 315)
    assert all(20 <= scale(value) <= 315 for value in values)
    assert len(scale.ticks()) <= 40


@pytest.mark.parametrize("step, nice", [(1, 1), (1.1, 2), (0.03, 0.05), (6, 10), (0.0021, 0.005)])
def test_steps_are_round(step, nice):
    assert nice_step(step) == pytest.approx(nice)


def test_labels_are_thinned_to_round_counts():
    assert [thinned(20, 16), thinned(8, 16), thinned(7, 16), thinned(0.05, 16)] == [1, 2, 5, 320]


@given(st.lists(st.floats(0, 300), max_size=20))
def test_spread_keeps_the_gap_and_the_order(places):
    moved = spread(sorted(places), 16, 0, 1000)
    assert all(b - a >= 16 - 1e-6 for a, b in zip(moved, moved[1:], strict=False))
    assert all(0 <= place <= 1000 for place in moved)


def test_spread_leaves_alone_what_is_apart():
    assert spread([10, 50, 90], 16, 0, 100) == [10, 50, 90]
    assert spread([90, 95], 16, 0, 100) == [84, 100]
    assert spread([], 16, 0, 100) == []


def test_one_value_stands_in_the_middle():
    assert linear_over([5.0], 0, 100)(5.0) == 50
    assert math.isfinite(log_over([0.0], 100, 0, 120)(0.0))
