"""The KL of whole plans from disk: that of the loaded model, several plans in one pass."""

import functools

import pytest

import fxfuse
from fxfuse.analysis.measure import Measurements
from fxfuse.analysis.records import Analysis, ChainFacts, ModelId
from fxfuse.calibration.store import DEFAULT_BOUND
from fxfuse.errors import InputError
from fxfuse.frontends.torch_model import read_torch
from fxfuse.progress import silent
from fxfuse.streaming.api import open_model
from fxfuse.streaming.plans import PlanMeasure
from tests.streaming.subjects import Reads, checkpoint, data, folder, program, reference

NAMES = [f"model.layers.{number}.mlp" for number in range(6)]
PLANS = [[(NAMES[0], NAMES[1], NAMES[2]), (NAMES[3], NAMES[4])], [(NAMES[1], NAMES[2])]]


def measure(analysis: Analysis | None = None, memory: int = DEFAULT_BOUND) -> PlanMeasure:
    given = analysis or reference()
    return PlanMeasure(open_model(checkpoint(), data()), given, data(), memory, silent)


@functools.cache
def expected() -> list[float]:
    """The KL of `PLANS` with the loaded model."""
    with Measurements(read_torch(program(), data().fit[0]), data()) as taken:
        blocks = {block.name: block for block in taken.blocks}
        plans = [[[blocks[name] for name in group] for group in plan] for plan in PLANS]
        return [taken.groups_kl(plan).kl for plan in plans]


@pytest.mark.parametrize("memory", [DEFAULT_BOUND, 0, 60_000])
def test_plans_in_one_pass_lose_what_they_lose_in_the_loaded_model(memory: int):
    found = measure(memory=memory).together(PLANS)
    assert [each.kl for each in found] == pytest.approx(expected(), rel=1e-3)


def test_one_plan_is_measured_in_one_pass(monkeypatch):
    made = measure()
    reads = Reads(monkeypatch)
    assert made(PLANS[1]).kl == pytest.approx(expected()[1], rel=1e-3)
    assert set(reads.of_layers()) == {1}


def test_near_ties_are_measured_together(monkeypatch):
    reads = Reads(monkeypatch)
    found = fxfuse.plan(reference(), depth=4, min_sqnr=None, model=folder(), data=data())
    assert found.kl is not None
    assert max(reads.of_layers()) == 1


def test_the_plan_is_the_one_of_the_loaded_model():
    options = {"max_kl": 0.5, "min_sqnr": None, "data": data(), "whole_front": True}
    theirs = fxfuse.plan(reference(), model=program(), **options)
    found = fxfuse.plan(reference(), model=folder(), **options)
    assert [group.blocks for group in found.groups] == [group.blocks for group in theirs.groups]
    assert [each.kl for each in found.front] == pytest.approx([each.kl for each in theirs.front], rel=1e-3)


def test_another_model_is_told_before_anything_is_measured():
    names = tuple(NAMES[:2])
    other = Analysis(
        "", ModelId(32, tuple((name, 48) for name in NAMES)), "", 1, 1, 0, [ChainFacts(names, (), ())]
    )
    with pytest.raises(InputError, match="The plan is for another model: its hidden size is 32"):
        measure(other)
