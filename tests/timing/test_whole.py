"""The whole model before and after: what is believed, on which inputs, and once from end to end."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import fxfuse
from fxfuse.passes.forms import Form
from fxfuse.specs import InputSpec
from fxfuse.timing import timer
from fxfuse.timing.contest import BASELINE, Pace
from fxfuse.timing.pairs import compare
from fxfuse.timing.whole import sample_at
from fxfuse.timing.workers import Failure, Worker
from tests.small_onnx import Small

PACE = Pace(rounds=2, pause=0.0)


@pytest.mark.parametrize("ratios, rounds", [([1.2, 1.2], 2), ([0.9, 0.9, 1.1, 1.1], 4), ([0.9] * 6, 6)])
def test_a_loss_is_measured_again_before_it_is_believed(ratios: list[float], rounds: int):
    left = list(ratios)
    turns = {BASELINE: lambda _: [1.0], "fused": lambda _: [1.0 / left.pop(0)]}
    found = compare(turns, 8, PACE)
    assert len(ratios) - len(left) == rounds
    assert (found.tokens, found.original_ms) == (8, 1000.0)
    assert found.ratio == pytest.approx(sum(ratios) / len(ratios))


def test_inputs_follow_the_token_count_where_the_model_lets_them():
    ids = InputSpec("input_ids", np.dtype(np.int64), ("batch", "sequence"))
    sample, note = sample_at([ids], 5, 0, 10)
    assert (sample["input_ids"].shape, note) == ((1, 5), "")
    fixed = InputSpec("input_ids", np.dtype(np.int64), (1, 16))
    sample, note = sample_at([fixed], 5, 0, 10)
    assert sample["input_ids"].shape == (1, 16)
    assert note == (
        "the model's inputs are of fixed shapes (input_ids [1, 16]), so the whole model was timed on those "
        "and not at 5 tokens"
    )


def test_a_process_says_why_it_fails_and_serves_on():
    with Worker("fxfuse.timing.onnx_runs:make", "cpu", 1, False, quiet=True) as worker:
        for _ in range(2):
            with pytest.raises(Failure, match="no such file|NoSuchFile|doesn't exist"):
                worker.ask("open", "/nowhere.onnx")
    with Worker("fxfuse.timing.nothing:make") as worker, pytest.raises(Failure, match="No module named"):
        worker.ask("open")


def test_a_file_is_fused_for_a_target_in_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who wins here is the machine's matter; that all was timed and told is not."""
    monkeypatch.setenv("FXFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(timer, "legal_forms", lambda *_: [Form()])
    path = tmp_path / "model.onnx"
    onnx.save(Small(layers=3).model(), path)
    target = {"tokens": (1, 4), "threads": 1}
    report = fxfuse.fuse_onnx(path, provider="cpu", target=target, min_sqnr=None)
    assert report.groups or any("ms at" in miss.reason for miss in report.misses)
    if report.groups:
        assert [each.tokens for each in report.latency] == [1, 4]
        assert set(report.groups[0].timing.fused_ms) == {1, 4}
        assert "the whole model" in str(report)
    assert (tmp_path / "cache" / "timings.json").is_file()
    assert "timing" in report.to_json()
    assert not report.notes or "not timed" not in " ".join(report.notes)


def test_without_a_target_nothing_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("subprocess.Popen", None)
    path = tmp_path / "model.onnx"
    onnx.save(Small(layers=3).model(), path)
    report = fxfuse.fuse_onnx(path, provider="cpu", min_sqnr=None)
    assert report.groups[0].timing is None
    assert report.latency == []
