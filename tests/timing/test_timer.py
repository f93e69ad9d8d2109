"""Decisions on figures that are given: no process is started and no clock is read."""

from pathlib import Path
from typing import Any

import pytest

from fxfuse.passes.forms import Form
from fxfuse.timing.cache import Cache
from fxfuse.timing.contest import BASELINE
from fxfuse.timing.shape import Shape
from fxfuse.timing.target import Target
from fxfuse.timing.timer import Timer
from tests.timing.fakes import PACE, FakeStage, speeds

SHAPE = Shape(32, (64,) * 4)
FORMS = [Form(), Form("packed"), Form(slices=4)]


def timer(
    stage: FakeStage, cache: Cache | None = None, tokens: tuple[int, ...] = (1, 8), **more: Any
) -> Timer:
    return Timer(Target(tokens), stage=stage, cache=cache or Cache(None), pace=PACE, **more)


def test_the_fastest_form_is_taken_with_its_figures():
    stage = FakeStage(speeds(two=0.8, packed=0.9, two_4=0.5))
    with timer(stage) as timed:
        decision = timed.decide_shape(SHAPE, FORMS, "layers.0-3.mlp")
    assert decision.form == Form(slices=4)
    assert decision.timing is not None
    assert decision.timing.form == "two/4"
    assert decision.timing.sequential_ms == {1: 1000.0, 8: 1000.0}
    assert decision.timing.fused_ms == {1: 500.0, 8: 500.0}
    assert stage.closed
    assert not stage.open_now


def test_a_group_that_does_not_pay_stays_with_the_figures_as_its_reason():
    def speed(shape: Shape, name: str, tokens: int) -> float:
        return 0.00098 if name == BASELINE else {1: 0.0009, 8: 0.00112}[tokens]

    with timer(FakeStage(speed)) as timed:
        decision = timed.decide_shape(SHAPE, FORMS, "layers.4-7.mlp")
    assert decision.form is None
    assert decision.reason == (
        "fusing layers.4-7.mlp takes 1.12 ms at 8 tokens on cpu, sequential 0.98 ms (best of 3 forms: two)"
    )


def test_a_gain_that_drowns_in_the_noise_is_none():
    """Usually 1.1 times as fast, and slower in every third round"""
    turns: list[float] = []

    def speed(shape: Shape, name: str, tokens: int) -> float:
        if name == BASELINE:
            return 1.0
        turns.append(0.0)
        return 1.25 if len(turns) % 3 == 0 else 0.9

    with timer(FakeStage(speed), tokens=(1,)) as timed:
        decision = timed.decide_shape(SHAPE, [Form()], "a")
    assert decision.form is None
    assert decision.reason == (
        "fusing a takes 900 ms at 1 token on cpu, sequential 1,000 ms (as two); one round in four or more "
        "was slower"
    )


def test_a_close_race_is_measured_more_often_and_a_clear_one_is_not():
    close, clear = FakeStage(speeds(two=0.99)), FakeStage(speeds(two=0.5))
    for stage in (close, clear):
        timer(stage, tokens=(1,)).decide_shape(SHAPE, [Form()], "a")
    assert clear.turns.count(("two", 1)) == 2 * PACE.rounds  # the second time in new memory
    assert close.turns.count(("two", 1)) == 3 * PACE.rounds


def test_a_winner_has_to_win_in_new_memory_too():
    """The form that was fast where it lay by chance is taken for slow, and the next one wins"""

    def speed(shape: Shape, name: str, tokens: int) -> float:
        again = stage.opened.count("two") > 1
        return {"two": 1.1 if again else 0.7, "packed": 0.8}.get(name, 1.0)

    stage = FakeStage(speed)
    decision = timer(stage, tokens=(1,)).decide_shape(SHAPE, [Form(), Form("packed")], "a")
    assert decision.form == Form("packed")
    assert decision.timing is not None
    assert decision.timing.fused_ms[1] == pytest.approx(0.8 * decision.timing.sequential_ms[1])
    assert stage.opened[-4:] == ["two", BASELINE, "packed", BASELINE]


def test_forms_are_timed_in_heats_where_memory_is_short():
    stage = FakeStage(speeds(two=0.9, packed=0.7, two_4=0.8), seats=2)
    decision = timer(stage).decide_shape(SHAPE, FORMS, "a")
    assert decision.form == Form("packed")
    assert stage.most_open == 2


def test_what_cannot_be_timed_keeps_the_default_form_and_says_why():
    short = timer(FakeStage(speeds(), seats=1)).decide_shape(SHAPE, FORMS, "a")
    assert (short.form, short.timing) == (Form(), None)
    assert "a was not timed: there is not enough memory" in short.reason
    broken = timer(FakeStage(lambda *_: -1.0)).decide_shape(SHAPE, FORMS, "a")
    assert broken.reason == "a was not timed: its process ended with exit code -9"
    none = timer(FakeStage(speeds(two=0.0, packed=0.0, two_4=0.0))).decide_shape(SHAPE, FORMS, "a")
    assert (none.form, none.reason) == (Form(), "a was not timed: no kernel")


def test_a_form_without_a_kernel_is_left_out():
    stage = FakeStage(speeds(two=0.0, packed=0.6, two_4=0.5))
    decision = timer(stage).decide_shape(SHAPE, FORMS, "a")
    assert decision.form == Form(slices=4)


def test_a_shape_is_timed_once_on_a_machine(tmp_path: Path):
    cache = Cache(tmp_path / "timings.json")
    fast = timer(FakeStage(speeds(two_4=0.5)), cache).decide_shape(SHAPE, FORMS, "a")
    again = FakeStage(speeds(two_4=9.0))
    assert timer(again, cache).decide_shape(SHAPE, FORMS, "a") == fast
    assert not again.turns
    other = timer(again, cache).decide_shape(Shape(32, (64,) * 3), FORMS, "a")
    assert again.turns
    assert other != fast
    (tmp_path / "timings.json").write_text((tmp_path / "timings.json").read_text().replace("0.5", '"x"'))
    timer(again, cache).decide_shape(SHAPE, FORMS, "a")


@pytest.mark.parametrize("other", [{"tokens": (2,)}, {"runtime": "inductor"}, {"options": {"a": 1}}])
def test_what_a_time_depends_on_is_part_of_its_key(tmp_path: Path, other: dict[str, Any]):
    cache = Cache(tmp_path / "timings.json")
    timer(FakeStage(speeds(two_4=0.5)), cache, (1,)).decide_shape(SHAPE, FORMS, "a")
    stage = FakeStage(speeds(two_4=0.5))
    timer(stage, cache, **{"tokens": (1,), **other}).decide_shape(SHAPE, FORMS, "a")
    assert stage.turns


def test_a_form_that_cannot_pay_any_more_is_given_up(tmp_path: Path):
    stage, cache = FakeStage(speeds(two=1.5, packed=0.9, two_4=2.0)), Cache(tmp_path / "timings.json")
    assert timer(stage, cache).decide_shape(SHAPE, FORMS, "a").form == Form("packed")
    assert {name for name, tokens in stage.turns if tokens == 8} == {BASELINE, "packed"}
    again = FakeStage(speeds())
    assert timer(again, cache).decide_shape(SHAPE, FORMS, "a").form == Form("packed")
    assert not again.turns
    timer(again, cache, thorough=True).decide_shape(SHAPE, FORMS, "a")
    assert {name for name, tokens in again.turns if tokens == 8} == {BASELINE, "two", "packed", "two/4"}


def test_where_all_are_given_up_the_figures_are_the_reason(tmp_path: Path):
    stage, cache = FakeStage(speeds(two=1.5, packed=1.6, two_4=2.0)), Cache(tmp_path / "timings.json")
    for _ in range(2):
        decision = timer(stage, cache).decide_shape(SHAPE, FORMS, "a")
        assert decision.form is None
        assert (
            "takes 1,500 ms at 1 token on cpu, sequential 1,000 ms (best of 3 forms: two)" in decision.reason
        )
    assert all(tokens == 1 for _, tokens in stage.turns)
