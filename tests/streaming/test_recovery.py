"""Recovery of a checkpoint from disk: what is kept in the loaded model, written as tensors of the source."""

import errno
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fxfuse.calibration import Calibration
from fxfuse.checkpoints import writing
from fxfuse.checkpoints.api import fuse_checkpoint
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.records import Checkpoint
from fxfuse.checkpoints.tensors import Tensors
from fxfuse.cli import main
from fxfuse.divergence import DivergenceMeter
from fxfuse.errors import FxfuseError, InputError
from fxfuse.frontends.torch_model import read_torch
from fxfuse.loading.api import load_pretrained
from fxfuse.passes.chains import find_chains
from fxfuse.recovery import RecoveryOptions, recover
from fxfuse.recovery.records import Recovered
from fxfuse.streaming import kept
from fxfuse.streaming.kept import kept_recovery
from fxfuse.streaming.recovering import RecoveredCheckpoint, recover_checkpoint
from tests.loading.small import make
from tests.streaming.subjects import Reads, ids

GROUPS = [(0, 1, 2), (3, 4)]
FEW = RecoveryOptions(penalties=(1e-2, 1e-1, 1.0))
FAMILIES = ("llama", "phi3", "gemma")


def small(folder: Path, family: str = "llama", **own: object) -> Checkpoint:
    """A checkpoint whose FFNs are narrow, so that few tokens suffice."""
    make(folder, family, widths={2: 16}, intermediate_size=24, hidden_size=32, head_dim=8, **own)  # type: ignore[arg-type]
    return open_checkpoint(folder)


def data() -> Calibration:
    return Calibration.of(ids(120, 16), context=16, batch_size=16)


def recovered(given: Checkpoint, folder: Path, **own: object) -> RecoveredCheckpoint:
    folder.mkdir(exist_ok=True)
    return recover_checkpoint(given, GROUPS, data(), folder, FEW, **own)  # type: ignore[arg-type]


def test_it_keeps_what_recovery_of_the_loaded_model_keeps(tmp_path):
    made = recovered(small(tmp_path / "source", "granite"), tmp_path / "corrected").found
    front = read_torch(load_pretrained(tmp_path / "source"), data().fit[0])
    chains = [chain.blocks for chain in find_chains(front.view).chains]
    expected = recover(front, chains, data(), FEW)
    for one, other in zip(made.groups, expected.groups, strict=True):
        assert (one.blocks, one.kept, one.width, one.solver) == (
            other.blocks,
            other.kept,
            other.width,
            other.solver,
        )
        assert one.error_before == pytest.approx(other.error_before, rel=1e-3)
        assert one.error_after == pytest.approx(other.error_after, rel=1e-2)
        assert one.kl_before == pytest.approx(other.kl_before, rel=1e-2)
        assert one.kl_after == pytest.approx(other.kl_after, rel=1e-2)
    assert made.kl_before is not None
    assert expected.kl_before is not None
    assert made.kl_before.kl == pytest.approx(expected.kl_before.kl, rel=1e-3)
    assert made.kl_after is not None
    assert made.kl_after.kl < 0.8 * made.kl_before.kl
    assert made.notes == expected.notes


def test_corrected_tensors_have_the_source_s_names_and_shapes(tmp_path):
    source = small(tmp_path / "source", "phi3")
    made = recovered(source, tmp_path / "corrected").checkpoint
    assert set(made.tensors) == set(source.tensors)
    for name, stored in made.tensors.items():
        own = source.tensors[name]
        assert (stored.shape, stored.dtype) == (own.shape, own.dtype)
        moved = any(f".layers.{layer}." in name for layer in range(5)) and (
            ".mlp." in name or "post_attention" in name
        )
        assert (stored.file != own.file) == moved, name
    norms = [f"{source.prefix(layer)}.{source.family.norm}.weight" for group in GROUPS for layer in group]
    assert {float(each) for name in norms for each in made.tensors.read(name)} == {
        1.0 - source.family.gain_offset
    }


def test_layers_are_read_once_and_once_more_behind_each_group(tmp_path, monkeypatch):
    source = small(tmp_path / "source")
    reads = Reads(monkeypatch)
    recovered(source, tmp_path / "corrected")
    of = {layer: reads.counts[f"{source.prefix(layer)}.mlp.down_proj.weight"] for layer in range(6)}
    # A group's own once more for its graph; layers behind a group in the race of it.
    assert of == {0: 2, 1: 2, 2: 2, 3: 3, 4: 3, 5: 2}


def test_streams_beyond_the_bound_go_to_the_disk(tmp_path):
    source = small(tmp_path / "source")
    options = RecoveryOptions(penalties=(0.1,), activations=0)
    found = recover_checkpoint(source, GROUPS[1:], data(), tmp_path, options).found
    expected = recover_checkpoint(
        source, GROUPS[1:], data(), tmp_path, replace(options, activations=1 << 30)
    ).found
    assert found.kl_after is not None
    assert expected.kl_after is not None
    assert found.kl_after.kl == pytest.approx(expected.kl_after.kl, rel=1e-6)
    assert any("temporary file" in note for note in found.notes)


def test_where_nothing_wins_the_checkpoint_is_as_it_was(tmp_path):
    """Three windows to judge by are too few to be sure of anything."""
    source = small(tmp_path / "source")
    few = Calibration.of(ids(4, 16), context=16, batch_size=2)
    (tmp_path / "corrected").mkdir()
    made = recover_checkpoint(source, GROUPS, few, tmp_path / "corrected", FEW)
    assert [group.kept for group in made.found.groups] == ["naive", "naive"]
    assert made.checkpoint.tensors is source.tensors
    assert not list((tmp_path / "corrected").iterdir())


def test_norms_that_differ_cannot_be_recovered(tmp_path, monkeypatch):
    from fxfuse.streaming import group_graph

    def nothing(view: object) -> object:
        class Found:
            chains, misses = (), ()

        return Found

    monkeypatch.setattr(group_graph, "find_chains", nothing)
    with pytest.raises(InputError) as error:
        recovered(small(tmp_path / "source"), tmp_path / "corrected")
    assert str(error.value) == ("model.layers.0-2.mlp cannot be recovered: leave recovery out, or the group.")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    source = small(tmp_path / "source")
    with pytest.raises(InputError, match="Corrected weights cannot be written to .*free some space there"):
        recover_checkpoint(source, GROUPS[1:], data(), tmp_path / "missing", FEW)


# Written as a fused checkpoint


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fused_checkpoint_loses_what_was_measured(family: str, tmp_path):
    """KL of the fused corrected checkpoint, loaded again, on the tokens held out."""
    small(tmp_path / "source", family)
    report = fuse_checkpoint(
        tmp_path / "source", tmp_path / "out", groups="0-2,3-4", recover=FEW, calibration=data()
    )
    assert report.recovery is not None
    assert all("h" in group["kept"] for group in report.recovery["groups"])
    one, other = load_pretrained(tmp_path / "source"), load_pretrained(tmp_path / "out")
    meter = DivergenceMeter()
    with torch.no_grad():
        for batch in data().held_out:
            meter.add(one(**batch, use_cache=False).logits, other(**batch, use_cache=False).logits)
    assert meter.result().kl == pytest.approx(report.recovery["kl_after"], rel=1e-3)
    record = json.loads((tmp_path / "out" / "fxfuse.json").read_text())
    assert record["recovery"]["kl_after"] == report.recovery["kl_after"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The weights of 2 of 2 groups were corrected" in card
    assert "KL with all groups: " in str(report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_killed_run_does_not_fit_again(tmp_path, monkeypatch):
    source = small(tmp_path / "source")
    given = (source, GROUPS[1:], data(), tmp_path / "out", FEW)
    first = kept_recovery(*given)
    monkeypatch.setattr(kept, "recover_checkpoint", None)
    second = kept_recovery(*given)
    assert second.figures == first.figures
    name = "model.layers.3.mlp.down_proj.weight"
    assert torch.equal(first.checkpoint.tensors.read(name), second.checkpoint.tensors.read(name))
    for other in ({"resume": False}, {"options": RecoveryOptions()}):
        with pytest.raises(TypeError, match="not callable"):
            kept_recovery(*given[:4], **{"options": FEW, **other})


def test_an_interrupted_run_leaves_its_recovery_and_a_failed_one_nothing(tmp_path):
    given = (small(tmp_path / "source"), GROUPS[1:], data(), tmp_path / "out", FEW)
    with pytest.raises(KeyboardInterrupt), kept_recovery(*given) as made:
        raise KeyboardInterrupt
    assert made.folder.exists()
    with pytest.raises(ValueError, match="full"), kept_recovery(*given):
        raise ValueError("full")
    assert not made.folder.exists()


def test_in_the_shell(tmp_path, capsys):
    small(tmp_path / "source")
    np.save(tmp_path / "ids.npy", ids(120, 16).numpy())
    given = ["checkpoint", str(tmp_path / "source"), str(tmp_path / "out"), "--groups", "0-2"]
    assert main([*given, "--recover", "fit", "--data", str(tmp_path / "ids.npy"), "--batch-size", "16"]) == 0
    told = capsys.readouterr().out
    assert "recovery of model.layers.0-2.mlp: g' + h (it wins on held-out tokens)" in told
    assert "layers 0 to 2: 3 FFNs, weights corrected, gains in them" in told
    assert "fusion loss:" not in told  # the line above has it
    assert main(["split", str(tmp_path / "out"), "-o", str(tmp_path / "back")]) == 0
    told = capsys.readouterr().out
    before, back = Tensors(tmp_path / "source"), Tensors(tmp_path / "back")
    blocks = [name for name in before if re.match(r"model\.layers\.[0-2]\.(mlp|post_att)", name)]
    others = [name for name in before if not torch.equal(before.read(name), back.read(name))]
    assert set(others) <= set(blocks)
    assert {f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(3)} <= set(others)
    assert [path.name for path in back.files] == [path.name for path in before.files]
    same = len(before) - len(blocks)
    counts = f"{same} tensors moved as they are, 0 back to rounding, {len(blocks)} of corrected blocks"
    assert f"4 layers became 6; {counts}\n" in told
    assert "note: 3 blocks come back corrected, not as they were: those of layers 0-2\n" in told
    assert main([*given, "--force", "--recover", "fit"]) == 2
    assert "--recover needs --data beside it: recovery corrects weights on data." in capsys.readouterr().err


def test_a_folder_that_is_taken_is_told_before_anything_is_fitted(tmp_path, monkeypatch):
    small(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    monkeypatch.setattr(kept, "recover_checkpoint", None)
    with pytest.raises(InputError, match="is not empty"):
        fuse_checkpoint(tmp_path / "source", tmp_path / "out", auto=True, recover=FEW, calibration=data())


def test_room_for_the_result_and_for_corrected_weights_is_known_before(tmp_path, monkeypatch):
    source = small(tmp_path / "source")
    blocks = ("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    names = [f"model.layers.{layer}.{block}." for layer in (3, 4) for block in blocks]
    needed = 1000 + sum(each.nbytes for each in source.tensors.values() if each.name.startswith(tuple(names)))
    given = (source, GROUPS[1:], data(), tmp_path / "out", FEW)
    room = SimpleNamespace(total=1 << 40, free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    monkeypatch.setattr(kept, "recover_checkpoint", None)
    with pytest.raises(FxfuseError, match=f"No space left for {tmp_path} on .* free some"):
        kept_recovery(*given, beside=1000)
    room.free = needed
    with pytest.raises(TypeError, match="not callable"):
        kept_recovery(*given, beside=1000)
    assert os.listdir(tmp_path) == ["source"]


def test_a_full_disk_is_told_before_anything_is_fitted(tmp_path, monkeypatch):
    small(tmp_path / "source")
    size = sum(fuse_checkpoint(tmp_path / "source", auto=True, dry_run=True).files.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1 << 40, free=size + 1000))
    monkeypatch.setattr(kept, "recover_checkpoint", None)
    with pytest.raises(FxfuseError, match=f"No space left for {tmp_path} on"):
        fuse_checkpoint(tmp_path / "source", tmp_path / "out", auto=True, recover=FEW, calibration=data())
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize(
    "code, told",
    [(errno.ENOSPC, "No space left for .* free some"), (errno.EROFS, "The folder .* cannot be written")],
)
def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, code: int, told: str):
    source = small(tmp_path / "source")

    def refuse(path: Path) -> None:
        raise OSError(code, os.strerror(code))

    made = RecoveredCheckpoint(source, Recovered([], []))
    monkeypatch.setattr(kept, "recover_checkpoint", lambda *_, **__: made)
    monkeypatch.setattr(kept, "sync", refuse)
    with pytest.raises(FxfuseError, match=told):
        kept_recovery(source, GROUPS, data(), tmp_path / "out", FEW)
    assert os.listdir(tmp_path) == ["source"]


def test_an_interrupted_writing_goes_on_with_the_corrected_weights(tmp_path, monkeypatch):
    small(tmp_path / "source")
    given = {"groups": "3-4", "recover": FEW, "calibration": data()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writing, "copy_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fuse_checkpoint(tmp_path / "source", tmp_path / "out", **given)
    with monkeypatch.context() as patched:
        patched.setattr(kept, "recover_checkpoint", None)
        assert fuse_checkpoint(tmp_path / "source", tmp_path / "out", **given).resumed
    fuse_checkpoint(tmp_path / "source", tmp_path / "other", **given)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "other"))
    assert one == other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "source"]
