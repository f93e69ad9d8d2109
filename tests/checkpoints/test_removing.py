"""A checkpoint without some of its attentions: as the torch model that they were removed from."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxfuse
from fxfuse.checkpoints.dialects import without_attention
from fxfuse.checkpoints.expected import problems
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.tensors import bytes_of
from fxfuse.checkpoints.without import leave_out
from fxfuse.errors import InputError
from tests.checkpoints import fusing, llama
from tests.checkpoints.drawn import LAYERS, OWN, SIDE, drawn, weights
from tests.checkpoints.hand import contents
from tests.loading import small

GONE = (1, 2, 4)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=small.ids(), use_cache=False).logits
    return found


def test_logits_are_those_of_the_torch_model(tmp_path: Path) -> None:
    """logits(load(remove(folder))) = logits(remove_attention(load(folder)))."""
    stock = small.make(tmp_path / "in", removed=(), layers=2)
    removal = fxfuse.remove_attention_checkpoint(stock.folder, tmp_path / "out", "1")
    less = fxfuse.remove_attention(fxfuse.load_pretrained(stock.folder), "1", cache=False)
    assert torch.equal(logits(fxfuse.load_pretrained(tmp_path / "out")), logits(less))
    assert not torch.allclose(logits(stock.whole), logits(less), atol=1e-3)
    assert removal.summary() == ("removed 1 attention (model.layers.1.self_attn); chains of FFN blocks: 2")


@pytest.mark.parametrize("family", ["qwen3", "phi3", "gemma", "granite"])
def test_logits_without_what_attention_adds(tmp_path: Path, family: str) -> None:
    """logits(load(remove(folder))) = those of the stock model with o_proj = 0."""
    stock = small.make(tmp_path / "in", family, removed=(), layers=3)
    fxfuse.remove_attention_checkpoint(stock.folder, tmp_path / "out", "1-2")
    before = logits(stock.whole)
    for layer in stock.whole.model.layers[1:]:
        layer.self_attn.o_proj.weight.data.zero_()
    found = logits(fxfuse.load_pretrained(tmp_path / "out"))
    torch.testing.assert_close(found, logits(stock.whole))
    assert not torch.allclose(found, before, atol=1e-3)


@pytest.mark.parametrize("family", OWN)
def test_what_is_left_is_left_bit_for_bit(tmp_path: Path, family: str) -> None:
    source = drawn(tmp_path / "in", family, removed=())
    removal = fxfuse.remove_attention_checkpoint(source, tmp_path / "out", [4, 2, 1])
    before, after = weights(source), weights(tmp_path / "out")
    gone = tuple(f"model.layers.{n}.{half}" for n in GONE for half in ("self_attn.", "input_layernorm."))
    assert after.keys() == {name for name in before if not name.startswith(gone)}
    assert all(bytes_of(after[name]) == bytes_of(before[name]) for name in after)
    assert (removal.bytes_before, removal.bytes_after) == (
        sum(each.nbytes for each in before.values()),
        sum(each.nbytes for each in after.values()),
    )
    layers = open_checkpoint(tmp_path / "out").layers
    assert [layer.number for layer in layers if not layer.attention] == list(GONE)
    assert len(layers) == LAYERS


def test_card_record_and_files_beside(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in", removed=())
    fxfuse.remove_attention_checkpoint(source, None, "1-2,4")
    found = contents(tmp_path / "in-less")
    for name, text in SIDE.items():
        assert found["README-source.md" if name == "README.md" else name] == text.encode()
    card = found["README.md"].decode()
    assert "# in, attention removed" in card
    assert "- attention-removal" in card
    assert "The attention of layers 1-2,4, by their old numbers, was removed" in card
    assert "3 of 6 attentions are left" in card
    assert "What leaving it out costs was **not measured**" in card
    record = json.loads(found["fxfuse.json"])
    assert record["removed"] == {"layers": [1, 2, 4], "choice": None}
    assert record["undo"] is None


def test_one_write_gives_what_two_give(tmp_path: Path) -> None:
    """fuse(remove(folder)) = fuse(folder, remove): weights and config bit for bit."""
    source = drawn(tmp_path / "in", removed=())
    report = fxfuse.fuse_checkpoint(source, tmp_path / "one", auto=True, remove="1-2,4")
    assert (report.removed, report.groups) == ([1, 2, 4], [(0, 1, 2), (3, 4)])
    assert "attention left out of layers 1-2,4" in str(report)
    fxfuse.remove_attention_checkpoint(source, tmp_path / "less", "1-2,4")
    fxfuse.fuse_checkpoint(tmp_path / "less", tmp_path / "two", auto=True)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    for name in ("config.json", "model.safetensors"):
        assert one[name] == two[name]
    card = one["README.md"].decode()
    assert "# in, FFNs fused" in card
    assert "Figures of fusing are against the model without it." in card


def test_split_gives_the_sequential_model_without_attention(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in", removed=(), same_gains=True)
    fxfuse.fuse_checkpoint(source, tmp_path / "out", auto=True, remove="1-2,4")
    undo = json.loads((tmp_path / "out/fxfuse.json").read_text())["undo"]
    assert len([name for name in undo["dropped"] if ".1." in name]) == 5
    report = fxfuse.split_checkpoint(tmp_path / "out", tmp_path / "back")
    told = "note: the attention of layers 1-2,4 was left out before fusing, and is not given back"
    assert told in str(report)
    fxfuse.remove_attention_checkpoint(source, tmp_path / "less", "1-2,4")
    less, back = weights(tmp_path / "less"), weights(tmp_path / "back")
    assert less.keys() == back.keys()
    assert all(bytes_of(back[name]) == bytes_of(less[name]) for name in less)
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config == json.loads((tmp_path / "less/config.json").read_text())


def test_removal_alone_is_not_split(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in", removed=())
    fxfuse.remove_attention_checkpoint(source, tmp_path / "less", "1-2,4")
    told = (
        "less is not fused: the attention of layers 1-2,4 was removed, and its weights are not kept, so take "
        "the checkpoint that it was made of."
    )
    with pytest.raises(InputError, match=told):
        fxfuse.split_checkpoint(tmp_path / "less", tmp_path / "back")
    assert sorted(os.listdir(tmp_path)) == ["in", "less"]


def test_what_was_fused_of_it_is_split(tmp_path: Path) -> None:
    """Its record lies in the folder again, so that the next split is refused."""
    source = drawn(tmp_path / "in", removed=(), same_gains=True)
    fxfuse.remove_attention_checkpoint(source, tmp_path / "less", "1-2,4")
    fxfuse.fuse_checkpoint(tmp_path / "less", tmp_path / "out", auto=True)
    fxfuse.split_checkpoint(tmp_path / "out", tmp_path / "back")
    less, back = contents(tmp_path / "less"), contents(tmp_path / "back")
    assert less["fxfuse.json"] == back["fxfuse.json"]
    assert weights(tmp_path / "less").keys() == weights(tmp_path / "back").keys()


def test_in_the_dialect_that_is_asked_for(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in", removed=(), mlp_bias=False)
    fxfuse.remove_attention_checkpoint(source, tmp_path / "out", "1-2,4", dialect="nemotron-nas")
    assert fxfuse.verify_checkpoint(tmp_path / "out").by("mlx-lm").loads
    fxfuse.remove_attention_checkpoint(tmp_path / "out", tmp_path / "again", "3")
    found = open_checkpoint(tmp_path / "again")
    assert found.dialect == "nemotron-nas"
    assert [layer.attention for layer in found.layers] == [True, False, False, False, False, True]


def test_layers_that_hold_nothing_then_go(tmp_path: Path) -> None:
    stored = llama.tensors(removed=(), without_ffn=(2,))
    source = llama.write(tmp_path / "in", stored, per_layer_config=llama.skips((), (2,)))
    fxfuse.remove_attention_checkpoint(source, tmp_path / "out", "2-3")
    layers = open_checkpoint(tmp_path / "out").layers
    assert [(each.attention, each.ffn) for each in layers] == [(True, True)] * 2 + [
        (False, True),
        (True, True),
    ]
    assert "5 layers became 4, as empty ones went." in (tmp_path / "out/README.md").read_text()


SUBBLOCKS = [{"subblock_configs": [{"kind": "attention"}, {"kind": "ffn", "intermediate_size": 32}]}] * 5
BLOCKS = [{"attention": {"no_op": n == 2}, "ffn": {"intermediate_size": 32}} for n in range(5)]


@pytest.mark.parametrize(
    "words",
    [
        {"per_layer_config": None},
        {"per_layer_config": {"02": {"skip": "attention"}, "3": {"intermediate_size": 32}}},
        {"per_layer_config": None, "drop_attn_list": [2]},
        {"per_layer_config": None, "drop_attn_list": [False, False, True, False, False]},
        {"per_layer_config": llama.skips((2,)), "drop_attn_list": [2]},
        {"per_layer_config": None, "block_configs": BLOCKS},
        {"per_layer_config": None, "block_configs": SUBBLOCKS},
    ],
)
def test_every_way_of_saying_it(tmp_path: Path, words: dict[str, Any]) -> None:
    """The config, read anew, says of the layers what was asked for, and nothing else."""
    found = open_checkpoint(llama.write(tmp_path, llama.tensors(removed=()), **words))
    before = json.dumps(dict(found.config))
    less = leave_out(found, [1, 3])
    assert json.dumps(dict(found.config)) == before
    assert not any(problems(less))
    assert less.dialect == ("per_layer_config" if found.dialect == "plain" else found.dialect)
    for one, other in zip(found.layers, less.layers, strict=True):
        assert other.attention == (one.attention and one.number not in (1, 3))
        assert (other.ffn, other.intermediate_size) == (one.ffn, one.intermediate_size)


def test_blocks_of_nemotron_nas(tmp_path: Path) -> None:
    found = open_checkpoint(fusing.nas(tmp_path, fuse=False))
    config = without_attention(found.config, [1])
    assert [each["attention"]["no_op"] for each in config["block_configs"]] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_other_forms_of_naming(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in", removed=())
    for place, which in enumerate(({"drop_attn_list": [2]}, ["model.layers.2.self_attn"], "2", [2])):
        removal = fxfuse.remove_attention_checkpoint(source, tmp_path / str(place), which)
        assert removal.removed == ("model.layers.2.self_attn",)


@pytest.mark.parametrize(
    "which, words, told",
    [
        ("9", {}, "There is no attention to remove in layer 9: the model has model.layers.0-1,5.self_attn"),
        ("2", {}, "There is no attention to remove in layer 2: the model has"),
        ([], {}, "No attention is named: say which are to go"),
        ("3-1", {}, "The range 3-1 runs backwards: write 1-3"),
        ("1", {"shard_size": 0}, "shard_size is 0: give a number of bytes"),
        ("1", {"dialect": "own"}, "There is no dialect 'own'"),
        ("0", {"dialect": "nemotron-nas"}, "its first layer has attention, and layer 0 here has none"),
        ("1", {"out": "in/below"}, "is the source .*, holds it or lies in it: choose another folder"),
    ],
)
def test_refused_before_anything_is_written(
    tmp_path: Path, which: Any, words: dict[str, Any], told: str
) -> None:
    source = drawn(tmp_path / "in", mlp_bias=False)
    out = tmp_path / words.pop("out", "out")
    with pytest.raises(InputError, match=told):
        fxfuse.remove_attention_checkpoint(source, out, which, **words)
    assert os.listdir(tmp_path) == ["in"]


def test_nothing_to_fuse_says_what_to_do(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in", removed=())
    with pytest.raises(InputError, match="remove attention first, with fxfuse remove, or at once with"):
        fxfuse.fuse_checkpoint(source, tmp_path / "out", auto=True)


def test_one_write_with_recovery(tmp_path: Path) -> None:
    """Weights are corrected towards the model without these attentions."""
    source = drawn(tmp_path / "in", removed=(), mlp_bias=False)
    ids = np.random.default_rng(0).integers(0, 40, 240)
    data = fxfuse.Calibration.of(ids, context=12, batch_size=4)
    report = fxfuse.fuse_checkpoint(
        source, tmp_path / "out", auto=True, remove="2", recover="fit", calibration=data
    )
    assert report.recovery is not None
    assert report.recovery["kl_after"] <= report.recovery["kl_before"]
