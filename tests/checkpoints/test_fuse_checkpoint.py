"""A checkpoint in, the fused one out, and back again."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fxfuse
from fxfuse.checkpoints.dialects import config_of
from fxfuse.checkpoints.families import FAMILIES
from fxfuse.checkpoints.tensors import bytes_of
from fxfuse.errors import InputError, VerificationError
from tests.checkpoints.drawn import HIDDEN, OWN, SIDE, WIDTH, drawn, weights
from tests.checkpoints.hand import contents


def ffn_of(family: str, layer: int, held: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Gate, up and down of a layer, its gain folded in, in float64."""
    known, prefix = FAMILIES[family], f"model.layers.{layer}"
    gain = held[f"{prefix}.{known.norm}.weight"].double() + known.gain_offset
    products = [held[f"{prefix}.{name}.weight"].double() for name in known.ffn_weights]
    if known.packed:
        products = [*products[0].chunk(2), products[1]]
    return [products[0] * gain, products[1] * gain, products[2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("same_gains", [True, False], ids=["kept", "folded"])
@pytest.mark.parametrize("family", OWN)
def test_wide_ffn_and_back(tmp_path: Path, family: str, same_gains: bool, dtype: torch.dtype) -> None:
    """gate = [gate_i diag(g_i)], down = [down_i]; bit for bit back where the gain is kept."""
    source = drawn(tmp_path / "in", family, dtype, same_gains=same_gains)
    report = fxfuse.fuse_checkpoint(source, tmp_path / "out", groups="1-4")
    assert report.layers == (6, 3)
    assert report.folded == ([] if same_gains else [(1, 2, 3, 4)])
    before, after = weights(source), weights(tmp_path / "out")
    wide = ffn_of(family, 1, after)
    blocks = [ffn_of(family, layer, before) for layer in (1, 2, 3, 4)]
    for index, (found, parts) in enumerate(zip(wide, zip(*blocks, strict=True), strict=True)):
        expected = torch.cat(parts, 1 if index == 2 else 0)
        torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=0)
    assert torch.equal(
        after["model.layers.2.input_layernorm.weight"], before["model.layers.5.input_layernorm.weight"]
    )

    back = fxfuse.split_checkpoint(tmp_path / "out", tmp_path / "back")
    found = weights(tmp_path / "back")
    assert (back.rounded == 0) == same_gains
    assert sorted(os.listdir(tmp_path / "back")) == sorted(os.listdir(source))
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )
    assert found.keys() == before.keys()
    folded = {
        f"model.layers.{n}.{name}.weight" for n in (1, 2, 3, 4) for name in FAMILIES[family].ffn_weights[:-1]
    }
    for name, tensor in before.items():
        if same_gains or name not in folded:
            assert bytes_of(found[name]) == bytes_of(tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("family", ["llama", "phi3", "granite"])
def test_nemotron_nas_and_back(tmp_path: Path, family: str) -> None:
    """Padded to 256, unpacked, multipliers folded in: all of it is undone."""
    own = {"mlp_bias": False} if family == "llama" else {}
    source = drawn(tmp_path / "in", family, same_gains=True, **own)
    report = fxfuse.fuse_checkpoint(source, tmp_path / "out", auto=True, dialect="nemotron-nas")
    assert report.padded == {0: 256 - WIDTH, 1: 256 - 4 * WIDTH, 2: 256 - WIDTH}
    wide = weights(tmp_path / "out")["model.layers.1.mlp.down_proj.weight"]
    assert wide.shape == (HIDDEN, 256)
    assert not wide[:, 4 * WIDTH :].any()
    fxfuse.split_checkpoint(tmp_path / "out", tmp_path / "back")
    before, found = weights(source), weights(tmp_path / "back")
    assert found.keys() == before.keys()
    for name, tensor in before.items():
        tolerance = 3e-7 if family == "granite" else 0
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=0)


def test_anymodel_and_back(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in", mlp_bias=False)
    report = fxfuse.fuse_checkpoint(source, tmp_path / "out", groups="1-3", dialect="anymodel")
    assert all(name.startswith("subblocks_safetensors/") for name in report.files)
    again = fxfuse.fuse_checkpoint(tmp_path / "out", tmp_path / "again", auto=True)
    assert (again.dialect, again.left_behind) == ("anymodel", [])
    fxfuse.split_checkpoint(tmp_path / "again", tmp_path / "half")
    half = contents(tmp_path / "half")
    assert half["fxfuse.json"] == contents(tmp_path / "out")["fxfuse.json"]
    assert half["README-source.md"] == SIDE["README.md"].encode()
    fxfuse.split_checkpoint(tmp_path / "half", tmp_path / "back")
    assert (tmp_path / "back" / "README.md").read_text() == SIDE["README.md"]
    before, found = weights(source), weights(tmp_path / "back")
    assert all(torch.allclose(found[name], tensor, rtol=1e-6) for name, tensor in before.items())


def test_files_beside_the_weights(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in")
    fxfuse.fuse_checkpoint(source, tmp_path / "out", auto=True)
    found = contents(tmp_path / "out")
    for name, text in SIDE.items():
        assert found["README-source.md" if name == "README.md" else name] == text.encode()
    assert b"layers became" in found["README.md"]
    record = json.loads(found["fxfuse.json"])
    assert [each["sources"] for each in record["layers"]] == [[0], [1, 2, 3, 4], [5]]
    assert record["source"]["num_hidden_layers"] == 6
    fxfuse.split_checkpoint(tmp_path / "out", tmp_path / "back")
    assert {name: (tmp_path / "back" / name).read_text() for name in SIDE} == SIDE


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in")
    for name in ("one", "two"):
        fxfuse.fuse_checkpoint(source, tmp_path / name, auto=True, shard_size=20_000)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len([name for name in contents(tmp_path / "one") if name.endswith(".safetensors")]) > 2


def test_split_gives_files_of_the_same_names(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in", same_gains=True)
    index = source / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": dict(reversed(places.items()))}))  # in any order
    fxfuse.fuse_checkpoint(source, tmp_path / "out", auto=True)
    report = fxfuse.split_checkpoint(tmp_path / "out")
    assert report.output == str(tmp_path / "out-split")
    assert list(report.files) == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]


def test_dry_run_tells_and_writes_nothing(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in")
    (source / "old.bin").touch()
    report = fxfuse.fuse_checkpoint(source, auto=True, dry_run=True)
    assert os.listdir(tmp_path) == ["in"]
    text = str(report)
    assert "4 FFNs in 1 group, 6 layers became 3, written as per_layer_config" in text
    assert "layers 1 to 4: 4 FFNs, gains folded into the weights" in text
    assert "left behind: old.bin" in text
    assert "weights: 1 file, " in text
    assert text.endswith("nothing was written")
    written = fxfuse.fuse_checkpoint(source, tmp_path / "out", auto=True)
    with pytest.raises(InputError, match="is not empty"):
        fxfuse.fuse_checkpoint(source, tmp_path / "out", auto=True, dry_run=True)
    assert written.files == report.files
    assert written.files == {"model.safetensors": (tmp_path / "out/model.safetensors").stat().st_size}
    assert json.loads(written.to_json())["groups"] == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    "words, told",
    [
        ({"auto": True, "shard_size": 0}, "shard_size is 0: give a number of bytes"),
        ({"auto": True, "out": None}, "Nothing says where to write: give out, or dry_run=True"),
        ({}, "Give one of groups, plan and auto"),
        ({"groups": "1-9"}, "There is no layer 9"),
        ({"auto": True, "dialect": "own"}, "There is no dialect 'own'"),
    ],
)
def test_refused_before_anything_is_written(tmp_path: Path, words: dict[str, Any], told: str) -> None:
    source = drawn(tmp_path / "in")
    with pytest.raises(InputError, match=told):
        fxfuse.fuse_checkpoint(source, **{"out": tmp_path / "out", **words})
    assert os.listdir(tmp_path) == ["in"]


def test_what_readers_would_not_load_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = drawn(tmp_path / "in")
    wrong = {"vocab_size": 41}
    monkeypatch.setattr("fxfuse.checkpoints.contents.config_of", lambda *words: config_of(*words) | wrong)
    with pytest.raises(VerificationError, match="would not load, so nothing was written: .*embed_tokens"):
        fxfuse.fuse_checkpoint(source, tmp_path / "out", auto=True)
    assert os.listdir(tmp_path) == ["in"]


def test_split_needs_the_record(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in")
    with pytest.raises(InputError, match="has no fxfuse.json: give a folder that fxfuse checkpoint wrote"):
        fxfuse.split_checkpoint(source, tmp_path / "out")


BEYOND = {"from": "lm_head.weight", "rows": [39, 40], "columns": [1, 33]}


def damage(record: dict[str, Any], *path: str, value: Any) -> None:
    *way, last = path
    for step in way:
        record = record[step]
    record[last] = value


@pytest.mark.parametrize(
    "path, value, told",
    [
        (("kind",), "x", "is no record of a fused checkpoint: copy"),
        (("format",), 2, "is of format 2, and this fxfuse reads format 1: update"),
        (("undo",), [], "is damaged or belongs to other tensors: copy"),
        (("undo", "tensors", "model.norm.weight", "shape"), [7], "is damaged or belongs"),
        (("undo", "tensors", "model.norm.weight", "dtype"), "F7", "is damaged or belongs"),
        (("undo", "tensors", "model.norm.weight", "parts"), [{"from": "gone"}], "is damaged or belongs"),
        (("undo", "tensors", "model.norm.weight", "parts"), [BEYOND], "is damaged or belongs"),
        (("undo", "tensors", "model.norm.weight", "file"), "../x.safetensors", "outside of its folder"),
        (("source", "record"), 5, "is damaged or belongs"),
    ],
)  # fmt: skip
def test_damaged_record(tmp_path: Path, path: tuple[str, ...], value: Any, told: str) -> None:
    source = drawn(tmp_path / "in")
    fxfuse.fuse_checkpoint(source, tmp_path / "out", auto=True)
    record = json.loads((tmp_path / "out/fxfuse.json").read_text())
    damage(record, *path, value=value)
    (tmp_path / "out/fxfuse.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=told):
        fxfuse.split_checkpoint(tmp_path / "out", tmp_path / "back")
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_record_that_is_not_json(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in")
    (source / "fxfuse.json").write_text("{")
    with pytest.raises(InputError, match="fxfuse.json is not JSON: copy the checkpoint anew"):
        fxfuse.split_checkpoint(source, tmp_path / "out")


def test_record_that_cannot_be_read(tmp_path: Path) -> None:
    source = drawn(tmp_path / "in")
    (source / "fxfuse.json").mkdir()
    with pytest.raises(InputError, match="fxfuse.json cannot be read: Is a directory"):
        fxfuse.split_checkpoint(source, tmp_path / "out")


def test_attention_that_the_config_leaves_out_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors that no reader asks for are not carried through, but small ones are kept aside."""
    monkeypatch.setattr("fxfuse.checkpoints.undoing._SMALL", 1000)
    source = drawn(tmp_path / "in", removed=())
    config = json.loads((source / "config.json").read_text())
    config["per_layer_config"] = {"2": {"skip": ["attention"]}}
    (source / "config.json").write_text(json.dumps(config))
    fxfuse.fuse_checkpoint(source, tmp_path / "out", auto=True)
    report = fxfuse.split_checkpoint(tmp_path / "out", tmp_path / "back")
    prefix = "model.layers.2.self_attn"
    assert sorted(report.dropped) == [f"{prefix}.{name}_proj.weight" for name in "koqv"]
    assert "note: 4 tensors that the config leaves out are not given back" in str(report)
    assert "model.layers.2.input_layernorm.weight" in weights(tmp_path / "back")
