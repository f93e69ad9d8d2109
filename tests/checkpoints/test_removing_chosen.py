"""`fxfuse remove` of a folder: by layers, by decisions, and chosen by what is measured from disk."""

import copy
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxfuse
from fxfuse import cli
from fxfuse.calibration import Calibration
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch
from fxfuse.streaming.choosing import choose_in_checkpoint
from tests.checkpoints.drawn import drawn, weights
from tests.checkpoints.hand import contents, folder_of
from tests.loading import small
from tests.streaming.subjects import Reads


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return drawn(tmp_path / "in", removed=(), mlp_bias=False)


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(0, 40, 240))
    return path


def data(path: Path) -> Calibration:
    return Calibration.of(path, context=12, batch_size=4)


def run(*words: Any) -> int:
    return cli.main(list(map(str, words)))


def kl_without(stock: small.Small, batches: Sequence[Batch], gone: Collection[int]) -> float:
    """The mean KL of the logits with o_proj = 0 in some layers, by hand."""
    less = copy.deepcopy(stock.whole)
    for number in gone:
        less.model.layers[number].self_attn.o_proj.weight.data.zero_()
    found = []
    for batch in batches:
        whole, other = (
            small.Small(stock.folder, model).logits(batch["input_ids"]).double().log_softmax(-1)
            for model in (stock.whole, less)
        )
        found.append((whole.exp() * (whole - other)).sum(-1).flatten())
    return float(torch.cat(found).mean())


def test_every_figure_is_that_of_the_stock_model(tmp_path: Path, ids: Path) -> None:
    """Each candidate's KL on top of what went before, and that of all of them on the data held out."""
    stock = small.make(tmp_path / "small", removed=(), layers=5, attention_bias=False)
    choice = fxfuse.choose_attention(stock.folder, data(ids), number=3)
    gone: list[int] = []
    for step in choice.steps:
        numbers = [int(each.name.split(".")[2]) for each in step.tried]
        assert numbers == [number for number in range(1, 5) if number not in gone]
        for number, each in zip(numbers, step.tried, strict=True):
            expected = kl_without(stock, data(ids).fit, [*gone, number])
            assert each.kl == pytest.approx(expected, rel=1e-3, abs=1e-6)
        gone.append(int(step.name.split(".")[2]))
    assert choice.layers == tuple(sorted(gone))
    assert choice.held_out_kl == pytest.approx(kl_without(stock, data(ids).held_out, gone), rel=1e-3)
    assert choice.stopped == "3 are gone, as many as were asked for"


def test_a_round_reads_every_weight_once(source: Path, ids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    choice = choose_in_checkpoint(open_checkpoint(source), data(ids), number=2, among="1-4")
    assert set(reads.of_layers()) == {3}  # two rounds, and the data held out
    assert set(choice.layers) <= {1, 2, 3, 4}


def test_several_passes_where_memory_is_short(source: Path, ids: Path) -> None:
    whole, short = (
        choose_in_checkpoint(open_checkpoint(source), data(ids), number=2, memory=bound)
        for bound in (1 << 30, 50_000)
    )
    assert whole.names == short.names
    assert whole.kl == pytest.approx(short.kl)


@pytest.mark.parametrize(
    "words, told",
    [
        ({}, "Say how much may go: number=, max_kl=, or both."),
        ({"number": 0}, "The number of attentions to remove must be 1 or more, not 0."),
        ({"max_kl": 0.0}, "max_kl must be above 0 nats, not 0."),
        ({"number": 1, "patience": 0.5}, "patience must be 1 or more, not 0.5."),
        ({"number": 1, "among": "0"}, "The model has no attention that may go: allow the first one"),
        ({"number": 1, "among": "7"}, "There is no attention to remove in layer 7: the model has"),
    ],
)
def test_bad_choices(source: Path, ids: Path, words: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        fxfuse.choose_attention(source, data(ids), **words)


def test_a_checkpoint_that_gives_nan(tmp_path: Path, ids: Path) -> None:
    source = drawn(tmp_path / "nan", removed=())
    held = weights(source)
    held["model.norm.weight"].fill_(float("nan"))
    (source / "model.safetensors.index.json").unlink()
    folder_of(source, held)
    with pytest.raises(InputError, match="gives NaN or infinity"):
        fxfuse.choose_attention(source, data(ids), number=1)


def test_by_number(source: Path, ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--number", 2, "--data", ids, "--context", 12, "--provider", "cpu"]
    assert run("remove", source, *words, "--report", tmp_path / "r.json") == 0
    told = capsys.readouterr().out
    assert "* went in that round" in told
    assert f"written to {tmp_path / 'in-less'}" in told
    written = json.loads((tmp_path / "r.json").read_text())
    found = open_checkpoint(tmp_path / "in-less")
    gone = [f"model.layers.{each.number}.self_attn" for each in found.layers if not each.attention]
    assert written["removed"] == gone
    assert len(gone) == 2
    card = (tmp_path / "in-less/README.md").read_text()
    assert f"{written['choice']['held_out_kl']:.3g} ± " in card
    record = json.loads((tmp_path / "in-less/fxfuse.json").read_text())
    assert record["removed"]["choice"]["layers"] == written["choice"]["layers"]


def test_none_within_budget(
    source: Path, ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("remove", source, "--max-kl", 1e-12, "--data", ids, "--context", 12) == 3
    assert "none is within budget: the next one, " in capsys.readouterr().out
    assert not (tmp_path / "in-less").exists()


def test_by_layers_and_by_decisions(source: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"drop_attn_list": [1, 3, 4]}))
    assert run("remove", source, "-o", tmp_path / "a", "--layers", "1,3-4", "--shard-size", "20kB") == 0
    words = ["--decisions", tmp_path / "config.json", "--shard-size", "20kB", "--restart"]
    assert run("remove", source, "-o", tmp_path / "b", *words) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len([name for name in contents(tmp_path / "a") if name.endswith(".safetensors")]) > 2


def test_fused_at_once(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("checkpoint", source, tmp_path / "out", "--remove", "2-4", "--auto") == 0
    told = capsys.readouterr().out
    assert "attention left out of layers 2-4" in told
    assert "layers 1 to 4: 4 FFNs" in told
    assert run("checkpoint", source, "--remove", "2,9", "--auto", "--dry-run") == 2
    assert "There is no attention to remove in layer 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, told",
    [
        (["FOLDER", "--number", "2"], "are measured: give calibration data with --data."),
        (["FOLDER", "--layers", "2", "--renumber"], "--renumber is for the cache of ONNX files: others have"),
        (["FOLDER", "--layers", "2", "-o", "TAKEN"], "is not empty: choose another folder or give --force."),
        (["FOLDER", "--layers", "2", "--shard-size", "0"], "--shard-size is 0: give a number of bytes"),
        (["m.onnx", "--layers", "2", "--dialect", "anymodel"], "are for the folders of checkpoints: leave"),
        (["m.onnx", "--layers", "2", "--shard-size", "1GB"], "are for the folders of checkpoints: leave"),
        (["m.onnx", "--layers", "2", "--restart"], "are for the folders of checkpoints: leave them out."),
    ],
)
def test_bad_arguments(
    source: Path, tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/old").touch()
    places = {"FOLDER": source, "TAKEN": tmp_path / "taken"}
    assert run("remove", *(places.get(word, word) for word in words)) == 2
    assert told in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["in", "taken"]


def test_a_taken_place_is_told_before_measuring(
    source: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxfuse.removal.choosing.choose_attention", None)
    words = ["-o", tmp_path, "--number", 1, "--data", ids]
    assert run("remove", source, *words) == 2


def test_interrupted(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fxfuse.checkpoints.remove.remove_attention_checkpoint", stop)
    assert run("remove", source, "--layers", "2") == 130
    assert "interrupted: the same command goes on where it was" in capsys.readouterr().err
