"""Whose turn it is, who drops out, and which form wins."""

import pytest

from fxfuse.timing.contest import BASELINE, Pace, Standing, run_rounds
from fxfuse.timing.verdict import judge
from fxfuse.timing.workers import Failure

PACE = Pace(pause=0.0)


def turns(log: list[str], **seconds: float):
    def turn(name: str, taken: float):
        def run(_: float) -> list[float]:
            log.append(name)
            if taken < 0:
                raise Failure("gone")
            return [taken, taken, 10 * taken]

        return run

    return {name: turn(name, taken) for name, taken in {BASELINE: 1.0, **seconds}.items()}


def test_the_order_turns_round_and_who_is_clearly_behind_drops_out():
    log: list[str] = []
    standing = Standing()
    run_rounds(turns(log, fast=0.5, near=0.51, slow=0.9), standing, PACE, ["fast", "near", "slow"])
    first = [BASELINE, "fast", "near", "slow"]
    assert log[:8] == [*first, *reversed(first)]
    assert log.count("slow") == PACE.first
    assert log.count("fast") == log.count("near") == log.count(BASELINE) == PACE.rounds
    assert standing.ratio("fast") == 2.0
    assert standing.seconds("fast") == 0.5
    assert standing.seconds() == 1.0


def test_a_contestant_that_fails_is_told_and_the_others_go_on():
    standing = Standing()
    run_rounds(turns([], bad=-1.0, good=0.5), standing, PACE, ["bad", "good"])
    assert standing.failures == {"bad": "gone"}
    assert (standing.ratio("bad"), standing.ratio("good")) == (0.0, 2.0)
    with pytest.raises(Failure, match="gone"):
        run_rounds({BASELINE: turns([], x=-1.0)["x"], "a": turns([])[BASELINE]}, Standing(), PACE, ["a"])


def at(**ratios: float) -> Standing:
    return Standing([1.0], {name: [ratio] for name, ratio in ratios.items()})


@pytest.mark.parametrize(
    "one, many, winner, pays",
    [
        ({"a": 1.5, "b": 1.2}, {"a": 1.0, "b": 1.1}, "a", True),
        ({"a": 1.5, "b": 1.2}, {"a": 0.9, "b": 1.0}, "b", True),  # never under 0.98
        ({"a": 1.0, "b": 0.99}, {"a": 1.01, "b": 1.02}, "a", False),  # too little
        ({"a": 1.9, "b": 0.9}, {"a": 0.9, "b": 0.97}, "a", False),
        ({"b": 1.2}, {"b": 1.2}, "b", True),  # a does not run
    ],
)
def test_a_form_pays_where_it_is_nowhere_behind_and_gains_on_the_whole(one, many, winner, pays):
    verdict = judge({1: at(**one), 32: at(**many)}, ["a", "b"])
    assert verdict is not None
    assert (verdict.name, verdict.pays) == (winner, pays)
    assert judge({1: at()}, ["a"]) is None


def test_a_verdict_that_a_little_noise_would_turn_round_is_in_doubt():
    def verdict(**ratios: float):
        return judge({1: at(**ratios)}, list(ratios))

    assert verdict(a=1.03).in_doubt
    assert verdict(a=1.0).in_doubt
    assert not verdict(a=1.3).in_doubt
    assert not verdict(a=0.7).in_doubt
