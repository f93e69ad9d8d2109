"""`fxfuse fuse` on .pt2 files: a program in, a fused program out, or one sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fxfuse.cli import main
from fxfuse.frontends.programs import load_program, save_program
from fxfuse.frontends.torch_model import export_module
from models.decoder import Decoder, DecoderConfig, LayerConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    layers = tuple(LayerConfig(attention=place == 0, intermediate_size=24) for place in range(3))
    model = Decoder(DecoderConfig(vocab_size=32, hidden_size=16, num_heads=2, layers=layers)).eval()
    ids = np.random.default_rng(0).integers(0, 32, (24, 16))
    np.save(tmp_path / "ids.npy", ids)
    save_program(export_module(model, {"input_ids": torch.from_numpy(ids[:4])}), tmp_path / "model.pt2")
    return tmp_path


def fuse(folder: Path, *words: str) -> int:
    return main(["fuse", str(folder / "model.pt2"), "--no-budget", *words])


@pytest.mark.parametrize("recover", [(), ("--recover", "fit")])
def test_a_program_is_fused(
    folder: Path, recover: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuse(folder, "--data", str(folder / "ids.npy"), *recover) == 0
    fused = load_program(folder / "model.fused.pt2")
    assert [name for name in fused.state_dict if name.startswith("fxfuse_0_")]
    assert fused.module()(input_ids=torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 32)
    assert "model.fused.pt2" in "".join(capsys.readouterr().out.split())  # however it is folded


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    before = sorted(folder.iterdir())
    assert fuse(folder, "--data", str(folder / "ids.npy"), "--dry-run") == 0
    assert sorted(folder.iterdir()) == before


def test_data_are_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuse(folder) == 2
    assert "measured on calibration data: give --data" in capsys.readouterr().err


def test_what_is_there_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.fused.pt2").write_text("mine")
    assert fuse(folder, "--data", str(folder / "ids.npy")) == 2
    assert (folder / "model.fused.pt2").read_text() == "mine"
    assert "exists" in capsys.readouterr().err
