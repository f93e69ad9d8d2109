"""log KL = c_b + p log d, fitted on what was measured; c by the end b, or by chain."""

import math

import pytest

from fxfuse.analysis.prediction import predict, rank_correlations
from fxfuse.analysis.records import Segment
from fxfuse.divergence import MAX_KL


def segment(chain: int, distance: float, kl: float | None = None, **more: float) -> Segment:
    return Segment(
        chain, 0, 1, more.pop("drift", distance), 10.0, 0.1, cosine_distance=distance, kl=kl, **more
    )


def predicted(*segments: Segment) -> list[float | None]:
    return [each.predicted_kl for each in predict(segments)]


def test_a_power_law_is_found_and_goes_on():
    law = lambda d: 3.0 * d**1.3  # noqa: E731
    found = predicted(*(segment(0, d, law(d)) for d in (0.001, 0.01, 0.1)), segment(0, 0.05))
    assert found == [pytest.approx(law(d)) for d in (0.001, 0.01, 0.1, 0.05)]


def test_chains_share_the_slope_and_differ_in_level():
    first = [segment(0, d, 2.0 * d) for d in (0.01, 0.1)]
    second = [segment(1, 0.02, 0.6), segment(1, 0.1)]
    assert predicted(*first, *second) == [pytest.approx(value) for value in (0.02, 0.2, 0.6, 3.0)]


def test_a_chain_without_a_measurement_takes_the_mean_level():
    found = predicted(segment(0, 0.01, 0.02), segment(1, 0.01, 0.08), segment(2, 0.01))
    assert found[2] == pytest.approx(0.04)


def test_ends_differ_in_level_and_share_the_slope():
    """Pairs tell the level of each end, the whole chain against their mean the slope"""
    ends = [Segment(0, b - 1, b, 0.1, 10.0, 0.1, cosine_distance=0.01, kl=0.01 * b) for b in (1, 2, 3)]
    mean = 0.01 * 6 ** (1 / 3)
    whole = Segment(0, 0, 3, 0.1, 10.0, 0.1, cosine_distance=0.1, kl=mean * 10**1.2)
    left = Segment(0, 0, 2, 0.1, 10.0, 0.1, cosine_distance=0.1)
    level = (2 * 6 ** (1 / 3)) ** 0.5  # that of its pair and the chain's mean, halfway
    assert predicted(*ends, whole, left)[-1] == pytest.approx(0.1 * 10**0.2 * level)


def test_nothing_measured_predicts_nothing():
    assert predicted(segment(0, 0.1), segment(0, 0.2)) == [None, None]
    assert predict([]) == []


def test_one_measurement_is_scaled():
    assert predicted(segment(0, 0.1, 0.3), segment(0, 0.2)) == [pytest.approx(0.3), pytest.approx(0.6)]


def test_measurements_that_tell_nothing_are_left_out():
    """A KL of zero, one of a model that broke, and a group without any error."""
    told = [segment(0, 0.01, 0.02), segment(0, 0.1, 0.2)]
    odd = [segment(0, 0.3, 0.0), segment(0, 0.4, MAX_KL), segment(0, 0.0, 1e-9)]
    assert predicted(*told, *odd) == [pytest.approx(value) for value in (0.02, 0.2, 0.6, 0.8, 0.0)]


def test_a_loss_that_falls_with_the_error_is_not_believed():
    found = predicted(segment(0, 0.1, 0.4), segment(0, 0.4, 0.1))
    assert found[1] == pytest.approx(4 * (found[0] or 0.0))


def test_the_prediction_stays_finite():
    found = predicted(segment(0, 1e-9, 1e-6), segment(0, 2e-9, 1e3), segment(0, 1.0))
    assert found[2] == pytest.approx(MAX_KL)


def test_rank_correlations():
    segments = [segment(0, d, d, drift=-d, predicted_kl=d, dependency=d) for d in (0.1, 0.2, 0.3)]
    found = rank_correlations([*segments, segment(0, 9.0)])
    assert found == {
        "predicted_kl": pytest.approx(1),
        "drift": pytest.approx(-1),
        "dependency": pytest.approx(1),
    }
    assert rank_correlations([segment(0, 0.1)]) == {}
    assert not any(math.isnan(value) for value in found.values())
