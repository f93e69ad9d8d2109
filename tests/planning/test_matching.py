"""A plan's groups in a graph: what fits, and one sentence for what does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from unittest.mock import Mock

import pytest

from fxfuse.analysis.records import ModelId
from fxfuse.errors import InputError
from fxfuse.passes.records import Block, Chain, Found, Miss
from fxfuse.planning.matching import match_plan
from fxfuse.planning.records import Plan, PlannedGroup

NAMES = [f"model.layers.{index}.mlp" for index in range(6)]


def block(name: str, hidden: int = 64, width: int = 96) -> Block:
    made = Mock(spec=Block)
    made.name, made.hidden_size, made.intermediate_size = name, hidden, width
    return made


def found(
    *chains: Sequence[str], singles: Sequence[str] = (), misses: Sequence[Miss] = (), **sizes: int
) -> Found:
    return Found(
        tuple(Chain(tuple(block(name, **sizes) for name in chain)) for chain in chains),
        tuple(block(name, **sizes) for name in singles),
        tuple(misses),
    )


def plan(*groups: Sequence[int | str], names: Sequence[str] = NAMES, width: int = 96) -> Plan:
    named = [tuple(names[each] if isinstance(each, int) else each for each in group) for group in groups]
    return Plan(ModelId(64, tuple((name, width) for name in names)), tuple(map(PlannedGroup, named)))


def sizes(groups: Sequence[Sequence[Block]]) -> list[list[str]]:
    return [[each.name for each in group] for group in groups]


def test_groups_are_blocks_in_the_plans_order() -> None:
    here = found(NAMES[:4], NAMES[4:])
    assert sizes(match_plan(plan([4, 5], [1, 2]), here)) == [NAMES[4:], NAMES[1:3]]
    assert match_plan(plan(), here) == []


@pytest.mark.parametrize("prefix", ["", "wrapped.model.", "_orig_mod.model."])
def test_another_prefix_is_the_same_model(prefix: str) -> None:
    other = [name.replace("model.", prefix) for name in NAMES]
    assert sizes(match_plan(plan([1, 2, 3]), found(other))) == [other[1:4]]


def test_names_that_say_nothing_are_taken_in_order() -> None:
    other = [f"node_add_{index}" for index in range(6)]
    assert sizes(match_plan(plan([1, 2]), found(other))) == [other[1:3]]
    with pytest.raises(InputError, match=r"its first block is model.layers.0.mlp, and here node_add_0\."):
        match_plan(plan([1, 2]), found(other[:5], singles=other[5:]))


@pytest.mark.parametrize(
    ("made", "here", "sentence"),
    [
        (plan([0, 1]), found(), "The plan has 6 FFN blocks, and none was found here."),
        (
            plan([0, 1]),
            found(misses=[Miss(NAMES[0], "its weights are computed")]),
            "The plan has 6 FFN blocks, and none was found here: model.layers.0.mlp: its weights are "
            "computed.",
        ),
        (
            plan([0, 1]),
            found(NAMES, hidden=32),
            "The plan is for another model: its hidden size is 64, and here it is 32.",
        ),
        (
            plan([0, 1]),
            found(NAMES, width=128),
            "The plan is for another model: model.layers.0.mlp is 96 wide there, and 128 wide here.",
        ),
        (
            plan([0, 1]),
            found([f"h.{index}.ffn" for index in range(6)]),
            "The plan is for another model: its first block is model.layers.0.mlp, and here h.0.ffn.",
        ),
        (
            plan([0, 1]),
            found(NAMES[:5]),
            "The plan is for another model: it has model.layers.5.mlp, and this model has no such block.",
        ),
        (
            plan([0, 1]),
            found([*NAMES, "model.layers.6.mlp"]),
            "The plan is for another model: this one has model.layers.6.mlp, which that one does not.",
        ),
        (
            plan([1, "model.layers.22.mlp"]),
            found(NAMES),
            "The plan names model.layers.22.mlp, which is no block of its model; did you mean "
            "model.layers.2.mlp?",
        ),
        (plan([1, "x"]), found(NAMES), "The plan names x, which is no block of its model: correct the name."),
        (plan([1]), found(NAMES), "The plan has a group of 1: name at least two blocks in each."),
        (plan([]), found(NAMES), "The plan has a group of 0: name at least two blocks in each."),
        (
            plan([1, 2], [2, 3]),
            found(NAMES),
            "The plan's groups overlap: model.layers.2.mlp is named 2 times.",
        ),
        (plan([1, 1]), found(NAMES), "The plan's groups overlap: model.layers.1.mlp is named 2 times."),
        (
            plan([1, 2, 4]),
            found(NAMES),
            "The plan fuses model.layers.1.mlp to model.layers.4.mlp, but model.layers.4.mlp does not follow "
            "model.layers.2.mlp: name consecutive blocks.",
        ),
        (
            plan([2, 1]),
            found(NAMES),
            "The plan fuses model.layers.2.mlp and model.layers.1.mlp, but model.layers.1.mlp does not "
            "follow model.layers.2.mlp: name consecutive blocks.",
        ),
        (
            plan([4, 5, 3]),
            found(NAMES),
            "but model.layers.3.mlp does not follow model.layers.5.mlp: name consecutive blocks.",
        ),
        (
            plan([2, 3]),
            found(NAMES[:3], NAMES[3:]),
            "The plan fuses model.layers.2-3.mlp, but they are not in one chain of this model: attention or "
            "something else stands between them.",
        ),
        (
            plan([2, 3]),
            found(
                NAMES[:3],
                NAMES[3:],
                misses=[Miss(NAMES[3], "the residual stream after it is also read by x")],
            ),
            "The plan fuses model.layers.2-3.mlp, but they are not in one chain of this model: the residual "
            "stream after it is also read by x.",
        ),
        (
            plan([4, 5]),
            found(NAMES[:4], singles=NAMES[4:]),
            "The plan fuses model.layers.4-5.mlp, but they are not in one chain of this model: attention or",
        ),
        (
            plan([1, 2]),
            found(NAMES[:2], NAMES[3:], misses=[Miss(NAMES[2], "its activation was not understood")]),
            "The plan fuses model.layers.1-2.mlp, but model.layers.2.mlp is no block here: its activation "
            "was not understood.",
        ),
    ],
)
def test_what_does_not_fit(made: Plan, here: Found, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        match_plan(made, here)


def test_a_block_that_is_missed_here_does_not_matter_to_other_groups() -> None:
    here = found(NAMES[:2], NAMES[3:], misses=[Miss(NAMES[2], "its activation was not understood")])
    assert sizes(match_plan(plan([0, 1], [3, 4, 5]), here)) == [NAMES[:2], NAMES[3:]]


def test_a_part_of_the_model_takes_its_own_groups() -> None:
    made = plan([0, 1], [3, 4, 5])
    assert sizes(match_plan(made, found(NAMES[3:]), part=True)) == [NAMES[3:]]
    assert match_plan(made, found(), part=True) == []
    assert match_plan(made, found(NAMES[2:3]), part=True) == []


@pytest.mark.parametrize(
    ("here", "sentence"),
    [
        (found(NAMES[4:]), "but model.layers.3.mlp is no block here: this graph is a part of the model."),
        (
            found(["a.0.b", "a.1.b"]),
            "The plan is for another model: its first block is model.layers.0.mlp, and",
        ),
        (
            found(NAMES[3:], width=32),
            "The plan is for another model: model.layers.3.mlp is 96 wide there, and 32",
        ),
    ],
)
def test_a_part_that_does_not_fit(here: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        match_plan(plan([0, 1], [3, 4, 5]), here, part=True)
