"""The whole way on a tiny decoder: every stage is kept, judged, and taken again where a run goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxfuse
from fxfuse.compression.judging import StageJudge
from fxfuse.frontends.programs import load_program
from fxfuse.frontends.torch_model import read_torch
from models.decoder import Decoder, DecoderConfig, LayerConfig
from models.fitting import initialise

NAMES = ["stock model", "attention removed", "healed", "fused", "recovered", "polished", "exported"]


def make_model() -> Decoder:
    torch.manual_seed(0)
    layers = (LayerConfig(intermediate_size=24),) * 5
    model = initialise(Decoder(DecoderConfig(vocab_size=32, hidden_size=16, num_heads=2, layers=layers)), 0)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(weight, std=0.1)
    return model.eval()


def make_data() -> fxfuse.Calibration:
    ids = np.random.default_rng(0).integers(0, 32, (24, 16))
    return fxfuse.Calibration.of(ids, batch_size=4, held_out=0.34)


def compress(folder: Path, **changed: Any) -> Any:
    options: dict[str, Any] = {
        "which": "2-3", "heal_steps": 2, "depth": 1, "recover": "fit", "polish_steps": 1,
    }  # fmt: skip
    return fxfuse.compress(make_model(), make_data(), folder, **(options | changed))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("way") / "out"
    return compress(folder), folder


def test_every_stage_is_kept_and_judged(run: tuple[Any, Path]) -> None:
    found, folder = run
    assert [stage.name for stage in found.stages] == NAMES
    assert [stage.depth for stage in found.stages] == [10, 8, 8, 6, 6, 6, 6]
    assert found.stages[0].kl == 0.0
    assert all(stage.loss is not None and stage.loss_error is not None for stage in found.stages)
    assert all(Path(stage.file).is_file() for stage in found.stages)
    assert json.loads((folder / "stages.json").read_text())["kind"] == "fxfuse stages"
    assert str(found).splitlines()[-1] == f"written: {folder / 'model.onnx'}"


def test_figures_are_those_of_the_stored_models(run: tuple[Any, Path]) -> None:
    """KL of a stage = KL of the program in its file, and of the ONNX file that the last became"""
    found, folder = run
    data, stock = make_data(), read_torch(load_program(folder / "stock-model.pt2"), make_data().fit[0])
    with StageJudge(stock, data.held_out, 1 << 30) as judge:
        again = judge.judge(read_torch(load_program(folder / "fused.pt2"), data.fit[0]))
    assert again.divergence.kl == pytest.approx(found.stages[3].kl, rel=1e-6)
    assert found.stages[-1].kl == pytest.approx(found.stages[-2].kl, rel=1e-3)
    model = make_model()
    ids = torch.cat([batch["input_ids"] for batch in data.held_out])
    logits = model(ids)[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits.double(), ids[:, 1:].flatten()).item()
    assert found.stages[0].loss == pytest.approx(loss, rel=1e-6)


def test_a_run_goes_on_where_it_was_stopped(run: tuple[Any, Path]) -> None:
    found, folder = run
    before = (folder / "healed.pt2").stat().st_mtime_ns
    (folder / "polished.pt2").unlink()
    again = compress(folder, resume=True)
    assert (folder / "healed.pt2").stat().st_mtime_ns == before
    assert [stage.kl for stage in again.stages] == pytest.approx(
        [stage.kl for stage in found.stages], rel=1e-4
    )


def test_the_page_reads_its_files(run: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = run
    files = {name: folder / f"{name}.json" for name in ("analysis", "plan", "report", "stages")}
    page = fxfuse.write_page(tmp_path / "page.html", **files)
    assert "attention removed" in page.read_text(encoding="utf-8")


def test_attention_is_chosen_under_a_budget(tmp_path: Path) -> None:
    options = {"recover": None, "polish_steps": 0, "depth": None, "max_kl": 10.0, "heal_steps": 0}
    found = compress(tmp_path / "out", which=None, max_kl_attention=10.0, **options)
    assert [stage.name for stage in found.stages] == [
        "stock model", "attention removed", "fused", "exported",
    ]  # fmt: skip
    assert found.stages[1].depth < 10


def test_nothing_in_a_row_is_told(tmp_path: Path) -> None:
    """Layers 1 and 4 of 5: the FFNs of layers 0-1 and 3-4 stand in a row; of none nothing does"""
    found = compress(tmp_path / "out", which="4", depth=None, max_kl=0.0, heal_steps=0, polish_steps=0)
    assert [stage.kl for stage in found.stages[2:3]] == pytest.approx([found.stages[1].kl], rel=1e-4)


def test_bad_calls_are_one_sentence(run: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = run
    for options, sentence in (
        ({"max_kl_attention": 1.0}, "one of the two"),
        ({"which": None}, "one of the two"),
    ):
        with pytest.raises(fxfuse.InputError, match=sentence):
            compress(tmp_path / "out", **options)
    with pytest.raises(fxfuse.InputError, match="holds a run already"):
        compress(folder)
    with pytest.raises(fxfuse.InputError, match="with other options"):
        compress(folder, resume=True, heal_steps=3)
    with pytest.raises(fxfuse.InputError, match="No attention can be removed within 1e-09 nats"):
        compress(tmp_path / "none", which=None, max_kl_attention=1e-9)
