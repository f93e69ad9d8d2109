"""The model card: what was done, and what is known of its loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxfuse.analysis.records import ModelId
from fxfuse.checkpoints.card import card_of
from fxfuse.checkpoints.grouping import choose_groups
from fxfuse.checkpoints.layout import lay_out
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.planning.records import Plan, PlannedGroup
from tests.checkpoints import llama

GROUP = PlannedGroup(("model.layers.1.mlp", "model.layers.2.mlp"), kl=0.0123, sqnr_db=21.6, measured=True)
ID = ModelId(llama.HIDDEN, ())


def card(folder: Path, plan: Plan | None = None, dialect: str | None = None) -> str:
    found = open_checkpoint(folder)
    return card_of(found, lay_out(found, choose_groups(found, auto=True), dialect), plan)


def test_what_was_done(tmp_path: Path) -> None:
    text = card(llama.write(tmp_path / "tiny"))
    assert "# tiny, FFNs fused" in text
    assert "3 of its FFNs fused into 1 wide one: 5 layers became 3." in text
    assert "| 1 to 3 | 1 | 3 x 32 = 96 | gains folded into gate and up |" in text
    assert "`per_layer_config` dialect" in text


def test_padding_is_told(tmp_path: Path) -> None:
    text = card(llama.write(tmp_path), dialect="nemotron-nas")
    assert "| 1 to 3 | 1 | 3 x 32 + 160 of zeros = 256 |" in text
    assert "Also padded with channels of zeros, which change nothing: layers 0, 2." in text


def test_a_gain_that_was_kept(tmp_path: Path) -> None:
    stored = llama.tensors()
    name = "model.layers.{}.post_attention_layernorm.weight"
    stored |= {name.format(layer): stored[name.format(1)] for layer in (2, 3)}
    assert "= 96 | as it was |" in card(llama.write(tmp_path, stored))


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (None, "The loss of fusing was **not measured**: these groups come from no plan."),
        (Plan(ID, (GROUP,)), "The loss of fusing was **not measured**: the plan brings no figures of it."),
        (Plan(ID, (GROUP,), predicted_kl=0.05), "0.05 nats per token, **predicted** by the plan"),
        (Plan(ID, (GROUP,), kl=0.02, kl_error=0.001), "0.02 ± 0.001 nats per token, measured"),
        (Plan(ID, (GROUP,), kl=0.02), "0.02 nats per token, measured"),
    ],
)
def test_what_is_known_of_the_loss(tmp_path: Path, plan: Plan | None, told: str) -> None:
    assert told in card(llama.write(tmp_path), plan)


def test_the_plan_with_its_figures(tmp_path: Path) -> None:
    predicted = PlannedGroup(("a", "b", "c"), kl=0.5)
    plan = Plan(ID, (GROUP, predicted), budget={"max_kl": 0.1, "depth": None}, notes=("32 windows",))
    text = card(llama.write(tmp_path), plan)
    assert "the plan was made on" not in text
    assert "| model.layers.1.mlp to model.layers.2.mlp | 0.0123 | 21.6 |" in text
    assert "| a to c | 0.5 (predicted) |  |" in text
    assert "Chosen under: max_kl 0.1." in text
    assert "Note: 32 windows" in text


def test_a_plan_of_another_name_is_told(tmp_path: Path) -> None:
    text = card(llama.write(tmp_path / "tiny"), Plan(ID, (GROUP,), model="models/small.onnx"))
    assert "Note: the plan was made on small.onnx: its blocks match those of tiny in name and width" in text


def test_corrected_blocks_are_told_in_one_way(tmp_path: Path) -> None:
    """The row of the group and the way back both say that its weights are others."""
    groups = [
        {
            "blocks": ["model.layers.1.mlp", "model.layers.2.mlp"],
            "kept": kept,
            "tokens": 9,
            "held_out_tokens": 3,
        }
        for kept in ("h", "naive")
    ]
    found = open_checkpoint(llama.write(tmp_path))
    layout = lay_out(found, choose_groups(found, "1-2"))
    figures = {"kl_before": 0.2, "kl_after": 0.1, "notes": []}
    text = card_of(found, layout, None, {**figures, "groups": groups[:1]})
    assert "| 1 to 2 | 1 | 2 x 32 = 64 | ones: the gains are in the corrected weights |" in text
    assert "blocks back again: 2 blocks come back corrected, not as they were; all else comes back as" in text
    plain = card_of(found, layout, None, {**figures, "groups": groups[1:]})
    assert "gains folded into gate and up |" in plain
    assert "gives the blocks back as they were, bit for bit where the gain was kept" in plain
    assert "come back corrected" not in plain


def test_the_licence_is_the_sources(tmp_path: Path) -> None:
    folder = llama.write(tmp_path)
    (folder / "README.md").write_text("---\nlicense: llama3.1\nlanguage: en\n---\n# Tiny\nlicense: mine\n")
    head = card(folder).partition("\n---\n")[0]
    assert head == "---\nlicense: llama3.1\ntags:\n- ffn-fusion\n- fxfuse"


def test_a_source_without_metadata(tmp_path: Path) -> None:
    folder = llama.write(tmp_path)
    (folder / "README.md").write_text("# Tiny\n---\nlicense: mine\n")
    assert card(folder).startswith("---\ntags:\n")


def test_the_card_is_the_same_each_time(tmp_path: Path) -> None:
    folder = llama.write(tmp_path)
    assert card(folder) == card(folder)
