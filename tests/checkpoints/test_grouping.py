"""Groups: every run, those that are named, those of a plan."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxfuse.analysis.records import ModelId
from fxfuse.checkpoints.grouping import choose_groups, runs
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.plans import block_names
from fxfuse.checkpoints.records import Checkpoint, Layer
from fxfuse.cli import main
from fxfuse.errors import InputError
from fxfuse.planning.records import Plan, PlannedGroup
from tests.checkpoints import llama


def checkpoint(
    folder: Path, removed: tuple[int, ...] = (2, 3), without_ffn: tuple[int, ...] = (), layers: int = 5
) -> Checkpoint:
    stored = llama.tensors(removed, without_ffn, layers)
    said = llama.skips(removed, without_ffn)
    return open_checkpoint(llama.write(folder, stored, per_layer_config=said, num_hidden_layers=layers))


def refused(found: Checkpoint, told: str, **asked: Any) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        choose_groups(found, **asked)


# Runs


@pytest.mark.parametrize(
    ("removed", "without_ffn", "expected"),
    [
        ((2, 3), (), [(1, 2, 3)]),
        ((), (), []),
        ((0, 1), (), [(0, 1)]),  # no attention before the first
        ((0, 1, 2, 3, 4), (), [(0, 1, 2, 3, 4)]),
        ((1, 3), (), [(0, 1), (2, 3)]),
        ((2, 3), (2,), [(1, 3)]),  # layer 2 holds nothing
        ((2, 3), (1,), [(2, 3)]),  # attention 1 stands between FFN 0 and FFN 2
        ((4,), (4,), []),
        ((1,), (0,), []),
        ((1, 2), (0, 1, 2), []),
    ],
)  # fmt: skip
def test_runs(
    tmp_path: Path, removed: tuple[int, ...], without_ffn: tuple[int, ...], expected: list[Any]
) -> None:
    assert runs(checkpoint(tmp_path, removed, without_ffn)) == expected


@given(halves=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_runs_are_what_no_attention_parts(halves: list[tuple[bool, bool]]) -> None:
    """By pairs: two FFNs are in one run where no layer after the first, up to the second's, has attention."""
    layers = tuple(Layer(number, *half, intermediate_size=8) for number, half in enumerate(halves))
    found = runs(SimpleNamespace(layers=layers))  # type: ignore[arg-type]
    ffns = [number for number, (_, ffn) in enumerate(halves) if ffn]
    joined = {
        (one, other)
        for one, other in itertools.combinations(ffns, 2)
        if not any(attention for attention, _ in halves[one + 1 : other + 1])
    }
    assert {pair for run in found for pair in itertools.combinations(run, 2)} == joined


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (None, [(0, 1, 2, 3, 4, 5, 6)]),
        (7, [(0, 1, 2, 3, 4, 5, 6)]),
        (4, [(0, 1, 2), (3, 4, 5, 6)]),
        (3, [(0, 1), (2, 3), (4, 5, 6)]),
        (2, [(1, 2), (3, 4), (5, 6)]),
    ],
)
def test_runs_are_cut_into_like_parts(tmp_path: Path, most: int | None, expected: list[Any]) -> None:
    found = checkpoint(tmp_path, (1, 2, 3, 4, 5, 6), layers=7)
    assert choose_groups(found, auto=True, max_group=most) == expected


def test_nothing_to_fuse(tmp_path: Path) -> None:
    refused(checkpoint(tmp_path, ()), "stand one behind the other with no attention between", auto=True)


# Layers that are named


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1-3", [(1, 2, 3)]), (" 2-3 ", [(2, 3)]), ("1-2", [(1, 2)]), ("5-6,1-3", [(1, 2, 3), (5, 6)])],
)
def test_named(tmp_path: Path, text: str, expected: list[Any]) -> None:
    assert choose_groups(checkpoint(tmp_path, (2, 3, 6), layers=7), text) == expected


def test_named_across_a_layer_that_holds_nothing(tmp_path: Path) -> None:
    assert choose_groups(checkpoint(tmp_path, (2, 3), (2,)), "1-3") == [(1, 3)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0-2", "Layer 1 has attention, so that 0-2 is not one run: begin a group there."),
        ("3-5", "There is no layer 5: this checkpoint has layers 0 to 4."),
        ("1-2,2-3", "The groups 1-2 and 2-3 overlap: give each layer once."),
        ("2", "'2' is no group: give first and last layers, as in 42-50,53-69."),
        ("3-1", "'3-1' is no group"),
        ("2-2", "'2-2' is no group"),
        ("", "'' is no group"),
        ("one-two", "'one-two' is no group"),
    ],
)
def test_named_wrongly(tmp_path: Path, text: str, told: str) -> None:
    refused(checkpoint(tmp_path), told, groups=text)


def test_named_with_a_layer_that_has_no_ffn(tmp_path: Path) -> None:
    refused(checkpoint(tmp_path, (2, 3), (1,)), "Layer 1 has no FFN: leave it out of 1-3.", groups="1-3")


def test_named_all_but_one_of_which_hold_nothing(tmp_path: Path) -> None:
    refused(checkpoint(tmp_path, (2, 3), (3,)), "A group of 1 FFN (2) changes nothing", groups="2-3")


def test_groups_of_two_types(tmp_path: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    stored = llama.tensors()
    stored[name] = stored[name].to(torch.bfloat16)
    found = open_checkpoint(llama.write(tmp_path, stored))
    told = f"model.layers.1.mlp.up_proj.weight is of type F32 and {name} of BF16: convert them to one type"
    refused(found, told, auto=True)


@pytest.mark.parametrize("asked", [{}, {"auto": True, "groups": "1-2"}, {"plan": "plan.json", "auto": True}])
def test_one_way_at_a_time(tmp_path: Path, asked: dict[str, Any]) -> None:
    refused(checkpoint(tmp_path), "Give one of groups, plan and auto", **asked)


def test_the_bound_is_for_auto(tmp_path: Path) -> None:
    found = checkpoint(tmp_path)
    refused(found, "max_group cuts the runs of auto", groups="1-2", max_group=2)
    refused(found, "max_group is 1: give 2 or more.", auto=True, max_group=1)


def test_nothing_to_fuse_has_an_exit_code_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path, removed=())
    assert main(["checkpoint", str(tmp_path), "--auto", "--dry-run"]) == 3
    assert "stand one behind the other with no attention between: remove" in capsys.readouterr().err
    (tmp_path / "plan.json").write_text(plan().to_json())
    assert main(["checkpoint", str(tmp_path), "--plan", str(tmp_path / "plan.json"), "--dry-run"]) == 3
    assert "The plan has no groups, so there is nothing to fuse" in capsys.readouterr().err


# Plans


def plan(*groups: tuple[int, ...], **other: Any) -> Plan:
    named = tuple(PlannedGroup(tuple(f"model.layers.{n}.mlp" for n in group)) for group in groups)
    blocks = tuple((f"model.layers.{n}.mlp", llama.WIDTH) for n in range(llama.LAYERS))
    return Plan(ModelId(other.get("hidden", llama.HIDDEN), other.get("blocks", blocks)), named)


def test_plan(tmp_path: Path) -> None:
    found = checkpoint(tmp_path)
    assert choose_groups(found, plan=plan((2, 3))) == [(2, 3)]
    path = tmp_path / "plan.json"
    path.write_text(plan((1, 2)).to_json())
    assert choose_groups(found, plan=path) == [(1, 2)]


def test_plan_with_the_names_of_another_form(tmp_path: Path) -> None:
    """An exporter dropped the prefix."""
    blocks = tuple((f"layers.{n}.mlp", llama.WIDTH) for n in range(llama.LAYERS))
    found = Plan(ModelId(llama.HIDDEN, blocks), (PlannedGroup(("layers.1.mlp", "layers.2.mlp")),))
    assert choose_groups(checkpoint(tmp_path), plan=found) == [(1, 2)]


def test_blocks_are_called_as_their_modules(tmp_path: Path) -> None:
    found = block_names(checkpoint(tmp_path, (2, 3), (4,)))
    assert list(found) == [f"model.layers.{n}.mlp" for n in range(4)]


BLOCKS = tuple((f"model.layers.{n}.mlp", llama.WIDTH) for n in range(llama.LAYERS))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (plan(), "The plan has no groups, so there is nothing to fuse"),
        (plan((1, 2), hidden=32), "another model: its hidden size is 32, and here it is 24."),
        (plan((1, 2), blocks=(*BLOCKS[:4], ("model.layers.4.mlp", 8))), "model.layers.4.mlp is 8 wide there"),
        (plan((1, 2), blocks=(*BLOCKS, ("model.layers.5.mlp", 32))), "it has model.layers.5.mlp, and"),
        (plan((1, 2), blocks=BLOCKS[:4]), "this one has model.layers.4.mlp, which that one does not."),
        (plan((0, 1)), "Layer 1 has attention, so that 0-1 is not one run"),
        (plan((1, 3)), "Layer 2 stands within 1-3: name it too, or two groups."),
        (plan((1, 2), (2, 3)), "The plan's groups overlap: model.layers.2.mlp is named 2 times."),
        (plan((2,)), "The plan has a group of 1: name at least two blocks in each."),
    ],
)  # fmt: skip
def test_plan_that_does_not_fit(tmp_path: Path, made: Plan, told: str) -> None:
    refused(checkpoint(tmp_path), told, plan=made)
