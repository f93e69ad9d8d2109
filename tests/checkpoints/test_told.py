"""What a report tells of a fused checkpoint: its loss, its plan, and which blocks are others now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fxfuse
from fxfuse.analysis.records import ModelId
from fxfuse.checkpoints.corrections import corrected_layers, in_block, told_corrected
from fxfuse.checkpoints.families import FAMILIES
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.plans import block_names
from fxfuse.checkpoints.report import loss_words
from fxfuse.errors import InputError
from fxfuse.planning.records import Plan, PlannedGroup
from tests.checkpoints.drawn import drawn

ID = ModelId(32, ())


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (None, "not measured (these groups come from no plan)"),
        (Plan(ID, ()), "not measured (the plan brings no figures of it)"),
        (Plan(ID, (), predicted_kl=0.05), "0.05 nats per token, predicted by the plan and not measured"),
        (Plan(ID, (), kl=0.02, kl_error=0.001), "0.02 ± 0.001 nats per token, measured by the plan"),
        (Plan(ID, (), kl=0.02), "0.02 nats per token, measured by the plan"),
    ],
)
def test_the_loss_in_a_line(plan: Plan | None, told: str) -> None:
    assert loss_words(plan) == told


def plan_of(folder: Path, model: str) -> Plan:
    found = open_checkpoint(folder)
    names = block_names(found)
    blocks = tuple((name, layer.intermediate_size) for name, layer in names.items())
    return Plan(ModelId(found.hidden_size, blocks), (PlannedGroup(tuple(names)[1:3]),), kl=0.1, model=model)


@pytest.mark.parametrize("model", ["elsewhere/in", "in", ""])
def test_a_plan_of_the_same_name(tmp_path: Path, model: str) -> None:
    source = drawn(tmp_path / "in")
    report = fxfuse.fuse_checkpoint(source, plan=plan_of(source, model), dry_run=True)
    assert report.notes == []
    assert "fusion loss: 0.1 nats per token, measured by the plan\n" in str(report)


def test_a_plan_of_another_name(tmp_path: Path) -> None:
    """Names and widths agree, so it is followed; that it is another model's is for the user to know."""
    source = drawn(tmp_path / "in")
    report = fxfuse.fuse_checkpoint(source, plan=plan_of(source, "elsewhere/other"), dry_run=True)
    told = "note: the plan was made on other: its blocks match those of in in name and width, and whether "
    assert told in str(report)


def test_which_layers_were_corrected() -> None:
    groups = [
        {"kept": "g' + h", "blocks": ["model.layers.7.mlp", "model.layers.8.mlp"]},
        {"kept": "naive", "blocks": ["model.layers.3.mlp", "model.layers.4.mlp"]},
    ]
    assert corrected_layers({"groups": groups}, FAMILIES["llama"]) == [7, 8]
    assert corrected_layers(None, FAMILIES["llama"]) == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.layers.7.mlp.gate_up_proj.weight", True),
        ("model.layers.7.mlp.down_proj.bias", True),
        ("model.layers.7.post_attention_layernorm.weight", True),
        ("model.layers.7.input_layernorm.weight", False),
        ("model.layers.7.self_attn.o_proj.weight", False),
        ("model.layers.70.mlp.down_proj.weight", False),
        ("model.norm.weight", False),
    ],
)
def test_the_tensors_of_a_block(name: str, found: bool) -> None:
    assert in_block(name, [7], FAMILIES["phi3"]) is found


def test_one_block_and_many() -> None:
    assert told_corrected(1) == "1 block comes back corrected, not as it was"
    assert told_corrected(2) == "2 blocks come back corrected, not as they were"


@pytest.mark.parametrize("recovery", [5, {}, {"groups": [{}]}])
def test_a_record_with_a_damaged_recovery(tmp_path: Path, recovery: object) -> None:
    fxfuse.fuse_checkpoint(drawn(tmp_path / "in"), tmp_path / "out", auto=True)
    path = tmp_path / "out" / "fxfuse.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recovery": recovery}))
    with pytest.raises(InputError, match="is damaged or belongs to other tensors: copy the checkpoint anew"):
        fxfuse.split_checkpoint(tmp_path / "out", tmp_path / "back")
