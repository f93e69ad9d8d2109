"""`fxfuse compress`: one command, a table of stages, and sentences."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fxfuse.cli import main
from fxfuse.frontends.programs import save_program
from fxfuse.frontends.torch_model import export_module
from models.decoder import Decoder, DecoderConfig, LayerConfig


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    torch.manual_seed(0)
    layers = (LayerConfig(intermediate_size=24),) * 4
    model = Decoder(DecoderConfig(vocab_size=32, hidden_size=16, num_heads=2, layers=layers)).eval()
    ids = np.random.default_rng(0).integers(0, 32, (24, 16))
    np.save(tmp_path / "ids.npy", ids)
    save_program(export_module(model, {"input_ids": torch.from_numpy(ids[:4])}), tmp_path / "model.pt2")
    return ["compress", str(tmp_path / "model.pt2"), "--data", str(tmp_path / "ids.npy")]


def test_one_command_goes_the_whole_way(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*words, "-o", str(out), "--layers", "1-2", "--heal-steps", "1", "--recover", "none"]) == 0
    shown = capsys.readouterr().out
    for stage in ("stock model", "attention removed", "healed", "fused", "exported"):
        assert stage in shown
    assert f"written: {out / 'model.onnx'}" in shown
    assert main(["page", *map(str, sorted(out.glob("[aprs]*.json"))), "-o", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize(
    "more, sentence",
    [
        ((), "--remove-kl --layers"),
        (("--layers", "9"), "9"),
        (("--layers", "1", "--heal-steps", "-1"), "Steps of distillation are 0 or more"),
        (("--layers", "1", "--remove-kl", "1"), "not allowed with"),
    ],
)
def test_bad_calls(
    words: list[str], more: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "-o", str(tmp_path / "out"), *more]) == 2
    assert sentence in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.onnx"))
