"""The point that is chosen: by bound, by depth, by latency; predicted, measured and repaired."""

from __future__ import annotations

import math
import re
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fxfuse
from fxfuse.divergence import Divergence
from fxfuse.errors import InputError
from fxfuse.planning.choose import plan
from fxfuse.planning.records import Plan
from tests.planning.made import BYTES, WIDTH, analysis, power, summed


def sizes(found: Plan) -> list[int]:
    return [len(group.blocks) for group in found.groups]


def chosen(found: Plan) -> tuple[tuple[int, ...], ...]:
    (point,) = [point for point in found.front if point.chosen]
    return point.lengths


# -- predicted -------------------------------------------------------------------------------------


def test_without_bounds_on_the_whole_it_is_the_least_depth_within_min_sqnr() -> None:
    """45 - 5 n dB: 6 blocks keep 15 dB, 7 keep 10 dB."""
    found = plan(analysis(7))
    assert sizes(found) == [3, 4]
    assert [(point.depth, point.within) for point in found.front] == [
        (1, False),
        *((n, True) for n in range(2, 8)),
    ]
    assert [point.lengths for point in plan(analysis(7), min_sqnr=None).front if point.chosen] == [((7,),)]
    assert "1 of 21 groups keep less than 12 dB" in found.notes


@pytest.mark.parametrize(
    ("bound", "lengths"),
    [(0.1, (3, 4)), (0.04, (2, 2, 3)), (0.02, (1, 2, 2, 2)), (0.006, (1, 1, 1, 1, 1, 2)), (0.0, (1,) * 7)],
)
def test_the_most_fused_point_within_max_kl(bound: float, lengths: tuple[int, ...]) -> None:
    found = plan(analysis(7), max_kl=bound)
    assert chosen(found) == (lengths,)
    assert found.predicted_kl == pytest.approx(sum(power(("",) * n) for n in lengths if n > 1))
    assert (found.kl, found.kl_error) == (None, None)
    assert all(point.within == (point.predicted_kl <= bound and point.depth > 1) for point in found.front)


def test_a_depth_is_had_with_the_least_loss() -> None:
    assert chosen(plan(analysis(7), depth=3)) == ((2, 2, 3),)
    assert chosen(plan(analysis(4, 3), depth=4)) == ((2, 2), (1, 2))


def test_the_last_block_is_left_alone_where_that_is_best() -> None:
    """The paper leaves the last FFN of a run alone; here a group with it loses ten times as much."""
    found = plan(
        analysis(7, loss=lambda names: power(names) * (10 if names[-1].endswith(".6.mlp") else 1)), depth=3
    )
    assert chosen(found) == ((3, 3, 1),)


def test_the_figures_of_groups_and_points() -> None:
    found = plan(analysis(5, measured=True), depth=2)
    one, other = found.groups
    assert (one.blocks, other.blocks[0]) == (
        ("model.layers.0.mlp", "model.layers.1.mlp"),
        "model.layers.2.mlp",
    )
    assert (one.kl, one.sqnr_db, one.measured, one.latency_ms) == (power(one.blocks), 35.0, True, None)
    assert not plan(analysis(5), depth=2).groups[0].measured
    assert found.model == "made"
    assert found.id == analysis(5).id
    assert found.versions["torch"]
    assert found.budget == {
        "max_kl": None, "min_sqnr": 12.0, "max_group": None, "include": None, "exclude": None, "depth": 2,
        "max_group_bytes": None, "latency": None,
    }  # fmt: skip
    assert "the KL is the sum of single groups': give the model and data to measure all groups together" in (
        found.notes
    )


@pytest.mark.parametrize(
    ("bounds", "lengths", "note"),
    [
        ({"max_group": 3}, (2, 2, 3), "10 of 21 groups are ruled out by max_group"),
        (
            {"max_group_bytes": 2 * BYTES},
            (1, 2, 2, 2),
            "15 of 21 groups are ruled out by the bound on a group's memory",
        ),
        ({"exclude": r"\.3\."}, (3, 1, 3), "15 of 21 groups are ruled out by include and exclude"),
        ({"include": r"\.[0-2]\."}, (3, 1, 1, 1, 1), "18 of 21 groups are ruled out by include and exclude"),
    ],
)
def test_bounds_on_groups_hold_in_the_whole_front(bounds: dict[str, Any], lengths: Any, note: str) -> None:
    found = plan(analysis(7), min_sqnr=None, **bounds)
    assert chosen(found) == (lengths,)
    assert found.front[0].depth == len(lengths)
    assert note in found.notes


def test_nothing_within_the_budget_and_nothing_to_fuse() -> None:
    none = plan(analysis(3), min_sqnr=90.0)
    assert none.groups == ()
    assert chosen(none) == ((1, 1, 1),)
    assert "no group is within the budget" in none.notes
    nothing = plan(analysis())
    assert (nothing.groups, chosen(nothing)) == ((), ())
    assert nothing.notes == ("the model has no chain of FFN blocks: there is nothing to fuse",)


def test_without_kl_groups_are_ranked_by_drift() -> None:
    found = plan(analysis(6, known=False), depth=2)
    assert chosen(found) == ((3, 3),)
    assert (found.predicted_kl, found.groups[0].kl) == (None, None)
    assert found.front[-1].predicted_kl == 0.0
    assert found.notes == ("the analysis has no KL: groups are ranked by the drift of their inputs",)
    assert '"predicted_kl": null' in found.to_json()
    with pytest.raises(
        InputError, match="max_kl needs an analysis with KL: analyze a model that returns logits."
    ):
        plan(analysis(6, known=False), max_kl=0.1)


@given(
    lengths=st.lists(st.integers(2, 5), min_size=1, max_size=2),
    most=st.none() | st.integers(2, 4),
    least=st.sampled_from([None, 12.0, 27.0, 36.0]),
    bound=st.none() | st.floats(0, 0.2),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_choice_is_the_least_depth_that_keeps_every_bound(lengths, most, least, bound, seed) -> None:
    """Against all segmentations of the chains, written out by the search's own tests."""
    found = analysis(
        *lengths, loss=lambda names: power(names) * (1 + (crc32(f"{names} {seed}".encode()) % 100) / 50)
    )
    result = plan(found, max_group=most, min_sqnr=least, max_kl=bound)
    assert result.predicted_kl <= (math.inf if bound is None else bound)
    assert all(2 <= n <= (most or 9) for n in sizes(result))
    assert all(least is None or group.sqnr_db >= least for group in result.groups)
    place = next(index for index, point in enumerate(result.front) if point.chosen)
    assert not any(point.within for point in result.front[:place])
    assert [point.depth for point in result.front] == sorted({point.depth for point in result.front})


# -- latency ---------------------------------------------------------------------------------------


def test_the_fastest_point_within_the_budget() -> None:
    times = {"1": 1.0, "2": 1.5, "3": 2.2, f"width {4 * WIDTH}": 2.6}
    found = plan(analysis(7), latency=times)
    assert chosen(found) == ((3, 4),)
    assert found.front[0].latency_ms == pytest.approx(4.8)
    assert [group.latency_ms for group in found.groups] == [2.2, 2.6]
    bounded = plan(analysis(7), latency=times, max_kl=0.02)
    assert chosen(bounded) == ((1, 2, 2, 2),)
    latencies = [point.latency_ms for point in bounded.front]
    losses = [point.predicted_kl for point in bounded.front]
    assert latencies == sorted(latencies)
    assert losses == sorted(losses, reverse=True)
    assert [point.within for point in bounded.front] == [loss <= 0.02 for loss in losses]
    assert (
        "no time is given for 6 of 21 groups, such as model.layers.0-4.mlp: they are left out" in found.notes
    )
    assert found.budget["latency"] == times


def test_what_is_slower_fused_stays() -> None:
    found = plan(analysis(4), latency={1: 1.0, 2: 2.5, 3: 4.0, 4: 5.0})
    assert found.groups == ()
    assert chosen(found) == ((1, 1, 1, 1),)


def test_a_faster_point_over_the_budget_is_in_the_front() -> None:
    found = plan(analysis(4), latency={1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3}, min_sqnr=30.0)
    assert [(point.lengths[0], point.within) for point in found.front][:2] == [((4,), False), ((2, 2), True)]


# -- measured --------------------------------------------------------------------------------------


def test_measuring_repairs_a_prediction_that_was_too_low() -> None:
    found = plan(analysis(7), max_kl=0.02, measure=summed(lambda names: 1.5 * power(names)))
    assert chosen(found) == ((1, 1, 1, 2, 2),)
    assert found.kl == pytest.approx(1.5 * 2 * power(("", "")))
    assert found.kl_error == 0.001
    tried = {point.depth: (point.kl is not None, point.within) for point in found.front}
    assert tried[4] == (True, False)
    assert tried[5] == (True, True)
    assert tried[3] == (False, False)
    assert "all groups together lose 1.5 times the sum of what each loses alone" in found.notes


def test_measuring_repairs_a_prediction_that_was_too_high() -> None:
    found = plan(analysis(7), max_kl=0.02, measure=summed(lambda names: 0.5 * power(names)))
    assert chosen(found) == ((2, 2, 3),)
    assert found.kl <= 0.02
    assert next(point for point in found.front if point.depth == 2).kl > 0.02


def test_measuring_chooses_among_near_ties() -> None:
    """Predicted, every place of the triple is as good; measured, only the first is."""
    measure = summed(lambda names: power(names) * (0.5 if "model.layers.1.mlp" in names else 1.0))
    found = plan(analysis(7), depth=3, measure=measure)
    assert chosen(found) == ((3, 2, 2),)
    assert any(
        re.fullmatch(r"of 4 near ties the measured KL chose: 0\.0\d+ nats, .+ lose 0\.0\d+", each)
        for each in found.notes
    )
    assert chosen(plan(analysis(7), depth=3, measure=measure, candidates=1)) == ((2, 2, 3),)


def test_near_ties_are_near() -> None:
    asked = []

    def measure(groups: Any) -> Divergence:
        asked.append(groups)
        return Divergence(0.01, 0.001, 1.0, 10)

    loss = {2: 0.01, 3: 0.02, 4: 1.0}
    plan(analysis(4, loss=lambda names: loss[len(names)]), depth=2, measure=measure)
    assert sorted(sum(map(len, groups)) for groups in asked) == [3, 3, 4]
    asked.clear()
    loss[3] = 0.04
    plan(analysis(4, loss=lambda names: loss[len(names)]), depth=2, measure=measure)
    assert [sum(map(len, groups)) for groups in asked] == [4]


def test_nothing_is_measured_twice_and_no_fusion_never() -> None:
    asked = []

    def measure(groups: Any) -> Divergence:
        asked.append(tuple(groups))
        return Divergence(1.0, math.nan, 0.0, 10)

    told: list[str] = []
    found = plan(analysis(5), max_kl=0.01, measure=measure, whole_front=True, progress=told.append)
    assert found.groups == ()
    assert (found.kl, found.kl_error) == (0.0, 0.0)
    assert len(asked) == len(set(asked))
    assert () not in asked
    assert all(point.kl is not None for point in found.front)
    assert found.front[0].kl_error is None
    assert "measuring the groups 1+2+2" in told


def test_a_point_that_gives_nan_is_passed_over() -> None:
    measure = lambda groups: Divergence(math.nan if len(groups) > 1 else 0.001, 0.1, 1.0, 10)  # noqa: E731
    found = plan(analysis(5), max_kl=0.02, measure=measure)
    assert sizes(found) == [2]
    assert any(point.kl is None and not point.within for point in found.front)
    found.to_json()


def test_latency_is_repaired_too() -> None:
    times = {"1": 1.0, "2": 1.5, "3": 2.2}
    found = plan(analysis(7), latency=times, max_kl=0.02, measure=summed(lambda names: 2 * power(names)))
    assert chosen(found) == ((1, 1, 1, 1, 1, 2),)
    assert found.kl <= 0.02


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"depth": 9}, "No plan has depth 9 (FFNs left in a row): 1 to 5 can be had."),
        ({"depth": 1, "max_group": 4}, "No plan has depth 1 (FFNs left in a row): 2 to 5 can be had."),
        ({"depth": 1, "min_sqnr": 24}, "No plan of depth 1 keeps 24 dB in each group: ask for depth 2 to 5"),
        ({"depth": 3, "min_sqnr": 99}, "No plan of depth 3 keeps 99 dB in each group: ask for depth 5, or"),
        ({"depth": 3, "min_sqnr": 33}, None),
        ({"depth": 2, "exclude": "[13]"}, "No plan has depth 2 (FFNs left in a row): 5 can be had."),
        ({"depth": -1}, "depth must be a whole number of at least 0 or None, not -1."),
        ({"depth": 2.0}, "depth must be a whole number of at least 0 or None, not 2.0."),
        ({"max_group_bytes": "2GB"}, "max_group_bytes must be a whole number of at least 1 or None"),
        ({"candidates": 0}, "candidates must be a whole number of at least 1, not 0."),
        ({"depth": 2, "max_kl": 0.1}, "depth and max_kl both choose how much is fused: give one of the two."),
        ({"depth": 2, "latency": {1: 1}}, "depth and latency both choose how much is fused: give one"),
        ({"model": object()}, "model and data belong together: give both to measure the plan, or neither."),
        ({"data": object()}, "model and data belong together: give both to measure the plan, or neither."),
        (
            {"data": object(), "model": object(), "measure": print},
            "measure and model both say how to measure: give one of the two.",
        ),
        ({"max_group": 1}, "max_group must be a whole number of at least 2 or None, not 1."),
        ({"exclude": "("}, "exclude='(' is not a regular expression: "),
        ({"latency": {2: 1.0}}, 'The latency has no time for the single block model.layers.0.mlp: add one of '
         '"model.layers.0.mlp", "width 96", "1".'),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, Any], sentence: str | None) -> None:
    if sentence is None:
        assert chosen(plan(analysis(5), **options)) == ((1, 2, 2),)
        return
    with pytest.raises(InputError, match=re.escape(sentence)):
        plan(analysis(5), **options)


def test_it_reads_the_file_of_an_analysis(tmp_path) -> None:
    (tmp_path / "a.json").write_text(analysis(5).to_json())
    assert fxfuse.plan(tmp_path / "a.json").groups == plan(analysis(5)).groups
    with pytest.raises(InputError, match="There is no analysis"):
        fxfuse.plan(tmp_path / "b.json")
    assert fxfuse.Plan is Plan
