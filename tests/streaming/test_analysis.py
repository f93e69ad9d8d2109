"""The analysis of a checkpoint from disk: the record that the loaded model gives, each weight read once."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fxfuse
from fxfuse.analysis.reading import read_analysis
from fxfuse.calibration import Calibration
from fxfuse.calibration.batches import positions
from fxfuse.checkpoints.api import fuse_checkpoint
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.cli import main
from fxfuse.divergence import DivergenceMeter
from fxfuse.errors import InputError
from fxfuse.loading.api import load_pretrained
from fxfuse.streaming.api import measure_checkpoint
from fxfuse.streaming.model import DiskModel
from fxfuse.streaming.sweep import divided
from tests.loading.small import FAMILIES, VOCAB, make
from tests.streaming.subjects import (
    Reads,
    arrays,
    assert_same,
    checkpoint,
    data,
    folder,
    ids,
    program,
    reference,
)


def logits(model: DiskModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits by hand: every update in its turn."""
    x = model.embedded(batch)
    for number in range(len(model.updates)):
        with model.loaded(number) as update:
            x = x + update.on(batch)(x)
    with model.head() as head:
        return head(x)


def kl(original: Any, changed: Any) -> float:
    """KL of two loaded models on the data held out."""
    meter = DivergenceMeter()
    with torch.no_grad():
        for batch in data().held_out:
            one, other = (each(**batch, use_cache=False).logits for each in (original, changed))
            meter.add(one, other, positions(batch))
    return meter.result().kl


# The model, one update at a time


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_model_s(family: str, dtype: torch.dtype, tmp_path):
    """logits = head(norm(x_n)), x_(p+1) = x_p + branch_p(x_p), bit for bit."""
    small = make(tmp_path, family, dtype, intermediate_size=48)
    found = logits(DiskModel(open_checkpoint(tmp_path)), {"input_ids": ids(2)})
    assert found.dtype == dtype
    with torch.no_grad():
        assert torch.equal(found, load_pretrained(tmp_path)(ids(2), use_cache=False).logits)
    if dtype == torch.float32:
        assert torch.equal(found, small.logits(ids(2)))


def test_a_tied_head_is_the_embedding(tmp_path):
    small = make(tmp_path, "gemma", tie_word_embeddings=True, intermediate_size=48)
    assert torch.equal(
        logits(DiskModel(open_checkpoint(tmp_path)), {"input_ids": ids(2)}), small.logits(ids(2))
    )


def test_a_fused_checkpoint_in_another_dialect(tmp_path):
    fuse_checkpoint(folder(), tmp_path / "out", auto=True, dialect="nemotron-nas")
    found = logits(DiskModel(open_checkpoint(tmp_path / "out")), {"input_ids": ids(2)})
    with torch.no_grad():
        assert torch.equal(found, load_pretrained(tmp_path / "out")(ids(2), use_cache=False).logits)


def test_one_update_at_a_time_has_memory():
    model = DiskModel(checkpoint())
    layers = model._shell.layers
    for number, update in enumerate(model.updates):
        with model.loaded(number):
            held = {name for layer in layers for name, each in layer.named_parameters() if not each.is_meta}
            assert {name.partition(".")[0] for name in held} == set(model._modules(update))
    assert all(each.is_meta for layer in layers for each in layer.parameters())


def test_of_the_embedding_only_the_rows_of_tokens_are_read(monkeypatch):
    reads = Reads(monkeypatch)
    batch = {"input_ids": torch.tensor([[5, 6, 7, 40, 5, 6]])}
    found = DiskModel(checkpoint()).embedded(batch)
    table = "model.embed_tokens.weight"
    assert (reads.rows[table], reads.counts[table]) == (4, 2)
    assert torch.equal(found[0], checkpoint().tensors.read(table)[batch["input_ids"][0]])


# What an analysis holds


def test_the_record_is_that_of_the_loaded_model():
    """Padded tokens count for nothing in both."""
    found = fxfuse.analyze(folder(), data(), kl_tokens=None)
    assert [len(chain.blocks) for chain in found.chains] == [3, 2]
    assert_same(found.to_dict(), reference().to_dict())


def test_figures_on_some_tokens_and_of_some_segments_are_the_same():
    options = {"segments": "pairs", "kl_tokens": 60}
    expected = fxfuse.analyze(program(), data(40), **options)
    assert_same(fxfuse.analyze(folder(), data(40), **options).to_dict(), expected.to_dict())


def test_every_weight_is_read_once(monkeypatch):
    reads = Reads(monkeypatch)
    measure_checkpoint(checkpoint(), data())
    assert set(reads.of_layers()) == {1}
    assert reads.counts["lm_head.weight"] == reads.counts["model.norm.weight"] == 1


def test_streams_beyond_the_bound_go_to_the_disk_or_in_several_passes(monkeypatch):
    """Both ways, and every weight is read once in a pass."""
    spilled = measure_checkpoint(checkpoint(), data(), kl_tokens=None, memory=0)
    assert_same(spilled.to_dict(), reference().to_dict())
    assert any("temporary file" in note for note in spilled.notes)
    reads = Reads(monkeypatch)
    several = measure_checkpoint(checkpoint(), data(), kl_tokens=None, memory=400_000)
    assert_same(several.to_dict(), reference().to_dict())
    assert len(set(reads.of_layers())) == 1
    count = next(reads.of_layers())
    assert count > 1
    assert (
        f"the checkpoint was read {count} times, so that the streams of a pass fit into memory"
        in several.notes
    )


def test_what_is_not_asked_for_is_not_measured(monkeypatch):
    reads = Reads(monkeypatch)
    found = measure_checkpoint(checkpoint(), data(), segments="none", dependency=False, attention=False)
    assert found.dependency is None
    assert {each.kl for each in (*found.segments, *found.attention)} == {None}
    assert found.segment(0, 0, 2).drift == pytest.approx(reference().segment(0, 0, 2).drift, rel=1e-4)
    assert "lm_head.weight" not in reads.counts


def test_batches_go_together_as_far_as_they_fit():
    assert divided([4, 4, 4], 8) == [[0, 1], [2]]
    assert divided([9, 1, 1], 2) == [[0], [1, 2]]
    assert divided([], 5) == []


# The command line


def test_analyze_and_plan_in_the_shell(tmp_path):
    np.savez(tmp_path / "ids.npz", **{name: each.numpy() for name, each in arrays().items()})
    given = ["--data", str(tmp_path / "ids.npz"), "--batch-size", "4"]
    analysis, plan = tmp_path / "analysis.json", tmp_path / "plan.json"
    assert main(["analyze", str(folder()), *given, "--kl-tokens", "0", "-o", str(analysis)]) == 0
    assert_same(
        read_analysis(analysis).to_dict() | {"command": ""},
        reference().to_dict() | {"source": str(tmp_path / "ids.npz")},
    )
    command = ["plan", str(analysis), "--no-budget", "--depth", "4", "--model", str(folder()), *given]
    assert main([*command, "-o", str(plan)]) == 0
    assert main(["checkpoint", str(folder()), str(tmp_path / "out"), "--plan", str(plan)]) == 0
    found = json.loads(plan.read_text())
    assert kl(load_pretrained(folder()), load_pretrained(tmp_path / "out")) == pytest.approx(
        found["kl"], rel=1e-3
    )


# What is refused


def test_other_inputs_are_refused():
    batch = {"input_ids": ids(4), "token_type_ids": ids(4)}
    with pytest.raises(InputError) as error:
        measure_checkpoint(checkpoint(), Calibration.of([batch, batch]))
    assert str(error.value) == (
        "A checkpoint is run on input_ids, attention_mask, position_ids, and the data hold token_type_ids: "
        "leave it out of them."
    )


def test_data_without_token_ids_are_refused():
    batch = {"attention_mask": torch.ones(4, 12, dtype=torch.int64)}
    with pytest.raises(InputError) as error:
        measure_checkpoint(checkpoint(), Calibration((batch,), (batch,)))
    assert str(error.value) == (
        "A checkpoint is run on token ids, and the data hold none: call them input_ids."
    )


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(InputError, match=f"outside the model's vocabulary of {VOCAB}"):
        measure_checkpoint(checkpoint(), Calibration.of(ids(20) + VOCAB, context=12))


def test_a_device_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees no CUDA device here: take provider auto or cpu"):
        measure_checkpoint(checkpoint(), data(), provider="cuda")


@pytest.mark.parametrize(
    "name, told",
    [("model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp"), ("lm_head.weight", "its logits")],
)
def test_nan_is_told_with_its_place(name: str, told: str, tmp_path):
    make(tmp_path, intermediate_size=48)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[name][0, 0] = math.nan
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as error:
        measure_checkpoint(open_checkpoint(tmp_path), data())
    assert str(error.value) == (
        f"The original model gives NaN or infinity at {told} on the calibration data: check the model and "
        "its number type."
    )
