"""Times for a plan: of every group, in the words that a plan takes."""

from pathlib import Path

import onnx
import pytest

import fxfuse
from fxfuse import cli
from fxfuse.timing import groups
from fxfuse.timing.cache import Cache
from fxfuse.timing.contest import BASELINE
from fxfuse.timing.shape import Shape
from fxfuse.timing.target import Target
from fxfuse.timing.timer import Timer
from tests.planning.made import analysis
from tests.small_onnx import Small
from tests.timing.fakes import PACE, FakeStage


def speed(shape: Shape, name: str, tokens: int) -> float:
    """A millisecond a block and token; fusing saves the half at one token and nothing at more."""
    gain = 1.0 if name == BASELINE or tokens > 1 else 2.0
    return 1e-3 * len(shape.widths) * tokens / gain


def made(tokens: tuple[int, ...] = (1,)) -> Timer:
    return Timer(Target(tokens), stage=FakeStage(speed), cache=Cache(None), pace=PACE)


def test_every_group_and_every_block_has_its_time():
    times = fxfuse.time_groups(analysis(3), 1, timer=made())
    assert times == pytest.approx(
        {
            "model.layers.0.mlp": 1.0,
            "model.layers.1.mlp": 1.0,
            "model.layers.2.mlp": 1.0,
            "model.layers.0-1.mlp": 1.0,
            "model.layers.1-2.mlp": 1.0,
            "model.layers.0-2.mlp": 1.5,
        }
    )
    plan = fxfuse.plan(analysis(3), min_sqnr=None, latency=times)
    assert [len(group.blocks) for group in plan.groups] == [3]


def test_progress_is_told_from_the_first_chain_on():
    told: list[str] = []
    fxfuse.time_groups(analysis(2), 1, timer=made(), progress=told.append)
    assert told[0] == "timing whole chains: 0 of 1"
    assert "timing groups: 0 of 3" in told


def test_token_counts_weigh_the_same():
    times = fxfuse.time_groups(analysis(2), (1, 32), timer=made((1, 32)))
    assert times["model.layers.0.mlp"] == pytest.approx(1.0)
    assert times["model.layers.0-1.mlp"] == pytest.approx((1.0 + 2.0) / 2)


def test_groups_longer_than_allowed_are_not_timed():
    assert "model.layers.0-2.mlp" not in fxfuse.time_groups(analysis(3), 1, max_group=2, timer=made())


def test_a_file_is_read_for_its_shapes(tmp_path: Path):
    onnx.save(Small(layers=2).model(), tmp_path / "model.onnx")
    times = fxfuse.time_groups(tmp_path / "model.onnx", 1, timer=made())
    assert set(times) == {"model.layers.0.mlp", "model.layers.1.mlp", "model.layers.0-1.mlp"}
    (tmp_path / "a.json").write_text(analysis(2).to_json())
    assert set(fxfuse.time_groups(tmp_path / "a.json", 1, timer=made())) == set(times)


def test_what_cannot_be_timed_is_an_input_error():
    with pytest.raises(fxfuse.InputError, match="takes an analysis"):
        fxfuse.time_groups(3, 1)
    with pytest.raises(fxfuse.InputError, match="needs a target"):
        fxfuse.time_groups(analysis(2), None)
    broken = Timer(Target((1,)), stage=FakeStage(lambda *_: -1.0), cache=Cache(None), pace=PACE)
    with pytest.raises(fxfuse.InputError, match="was not timed: its process ended with exit code -9: give"):
        fxfuse.time_groups(analysis(2), 1, timer=broken)


def test_the_command_line_plans_for_a_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(groups, "Timer", lambda target, runtime, thorough: made(target.tokens))
    path = tmp_path / "a.json"
    path.write_text(analysis(3).to_json())
    assert cli.main(["plan", str(path), "--no-budget", "--target-tokens", "1,8"]) == 0
    assert "model.layers.0-2.mlp" in capsys.readouterr().out
    assert cli.main(["plan", str(path), "--depth", "1", "--target-tokens", "1"]) == 2
    assert "--target-tokens and --depth both say" in capsys.readouterr().err
    assert cli.main(["plan", str(path), "--target-threads", "1"]) == 2
    assert "needs --target-tokens" in capsys.readouterr().err
    assert cli.main(["plan", str(path), "--target-tokens", "0"]) == 2
    assert "no list of token counts" in capsys.readouterr().err
