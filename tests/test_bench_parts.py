"""The parts of tools/bench.py: its statistics, its judge and what it times."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fxfuse.timing.rounds import Ratio, Timing, percentile
from fxfuse.timing.workers import LEAST_CALLS, time_round
from tools.benchmark.files import Reference
from tools.benchmark.machine import slug
from tools.benchmark.subjects import build, draw_input, run_parallel

# Figures


@pytest.mark.parametrize("share, value", [(0.0, 1.0), (0.1, 1.4), (0.5, 3.0), (0.9, 4.6), (1.0, 5.0)])
def test_percentiles_are_those_of_numpy(share: float, value: float):
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert percentile(values, share) == pytest.approx(value)
    assert percentile(values, share) == pytest.approx(np.percentile(values, 100 * share))


def test_a_percentile_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


def test_a_timing_pools_all_rounds_and_keeps_the_median_of_each():
    timing = Timing.of([[1e-6, 2e-6, 3e-6], [5e-6]])
    assert (timing.calls, timing.p50_us) == (4, pytest.approx(2.5))
    assert timing.round_p50_us == pytest.approx((2.0, 5.0))
    assert timing.p10_us < timing.p50_us < timing.p90_us


def test_a_ratio_is_taken_round_by_round():
    """A machine twice as slow in the second round slows both, and the ratio stays."""
    unfused, fused = Timing.of([[3e-6], [6e-6], [2e-6]]), Timing.of([[2e-6], [4e-6], [2e-6]])
    ratio = Ratio.of(unfused, fused)
    assert ratio.rounds == pytest.approx((1.5, 1.5, 1.0))
    assert (ratio.median, ratio.least, ratio.greatest) == pytest.approx((1.5, 1.0, 1.5))
    assert not ratio.tells
    assert Ratio.of(fused, Timing.of([[3e-6], [8e-6], [4e-6]])).tells


def test_a_round_has_a_least_number_of_calls_and_counts_no_warm_up():
    calls: list[str] = []
    times = time_round(lambda: calls.append("call"), lambda: calls.append("wait"), 0.0)
    assert len(times) == LEAST_CALLS
    assert calls == ["call", "wait"] * (LEAST_CALLS + 1)


# Subjects and the judge


@pytest.mark.parametrize("answer", [np.full(4, np.nan), np.zeros(4), np.full(4, 2.0)])
def test_nan_zeros_and_wrong_answers_are_not_timed(tmp_path: Path, answer: np.ndarray):
    ones = np.ones(4)
    path = tmp_path / "1.npz"
    np.savez(path, **{"input": ones, "float32-sequential": 2 * ones, "float32-parallel": ones})
    reference = Reference(path, "float32")
    assert reference.check(ones + 1e-6, fused=True) == pytest.approx(1e-6)
    with pytest.raises(ValueError, match="wrong answer"):
        reference.check(answer, fused=True)


def test_the_parallel_form_is_another_function_than_the_sequential_one():
    """Otherwise the check could not tell whether anything was fused."""
    model = build("chain-256").double()
    x = draw_input(model, 4).double()
    with torch.no_grad():
        ffns = [layer.mlp(layer.post_attention_layernorm(x)) for layer in model.layers]
        torch.testing.assert_close(run_parallel(model, x), x + torch.stack(ffns).sum(0))
        difference = (run_parallel(model, x) - model(x)).norm() / model(x).norm()
    assert difference > 10 * Reference.TOLERANCE["float32"]


def test_the_same_name_gives_the_same_weights():
    one, other = build("chain-256").state_dict(), build("chain-256").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_device_name_becomes_a_file_name():
    assert slug("Intel(R) Xeon(R) CPU @ 2.20GHz 8 cores") == "intel-xeon-cpu-2-20ghz-8-cores"
    assert slug("../") == "unknown"
