"""Models of any size: what is held in memory, what is told, and that the cost grows with the size alone."""

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

import fxfuse
from fxfuse import onnxio
from fxfuse.clock import Clock
from fxfuse.datafile import DataFile
from fxfuse.external import size
from fxfuse.frontends import onnx_file as front
from fxfuse.frontends import onnx_runs, pieces
from fxfuse.frontends.onnx_graph import read_graph
from fxfuse.onnxio import load_model, read_tensor
from fxfuse.passes import storing
from fxfuse.passes.chains import find_chains
from fxfuse.passes.weights import widen
from tests.small_onnx import Small, save
from tools.benchmark.size import measure_size
from tools.benchmark.synthetic import Shape, write_decoder


@pytest.fixture
def small_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is a large model."""
    monkeypatch.setattr(pieces, "BOUND", 4000)
    monkeypatch.setattr(onnx_runs, "BOUND", 4000)


def fuse(path: Path, out: Path) -> fxfuse.Report:
    return fxfuse.fuse_onnx(path, out, min_sqnr=None, provider="cpu")


# Large models, piece by piece


@pytest.mark.usefixtures("small_bound")
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("external", [False, True])
def test_a_large_model_is_fused_as_a_small_one(tmp_path, monkeypatch, kind, external):
    path = save(tmp_path / "m.onnx", external=external, layers=4, dtype=kind)
    report = fuse(path, tmp_path / "large.onnx")
    monkeypatch.setattr(onnx_runs, "BOUND", 1 << 30)
    whole = fuse(path, tmp_path / "small.onnx")
    assert [len(group.blocks) for group in report.groups] == [4]
    assert report.groups[0].sqnr_db == pytest.approx(whole.groups[0].sqnr_db, abs=0.1)
    assert report.end_to_end["kl"] == pytest.approx(whole.end_to_end["kl"], abs=1e-4)
    large, small = (onnx.load(tmp_path / f"{name}.onnx") for name in ("large", "small"))
    assert large.graph == small.graph
    assert any("piece by piece" in note for note in report.notes)
    assert not any("piece by piece" in note for note in whole.notes)


@pytest.mark.usefixtures("small_bound")
def test_a_wide_ffn_that_is_wrong_is_found_out_piece_by_piece(tmp_path, monkeypatch):
    right = storing.written

    def wrong(*arguments: Any, **options: Any) -> Any:
        stored = right(*arguments, **options)
        stored.tensors["down"].mul_(1.01)
        return stored

    monkeypatch.setattr(front, "written", wrong)
    with pytest.raises(fxfuse.VerificationError, match="nothing was written"):
        fuse(save(tmp_path / "m.onnx", external=True), tmp_path / "o.onnx")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]


def test_wide_weights_grow_in_the_output_and_nowhere_else(tmp_path, monkeypatch):
    """Neither a copy of a source weight nor of a wide one is made in memory."""
    path = save(tmp_path / "m.onnx", external=True)
    seen: list[torch.Tensor] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        stored = storing.written(*arguments, **options)
        seen.extend(stored.tensors[role] for role in ("gate", "up", "down"))
        return stored

    monkeypatch.setattr(front, "written", watched)
    monkeypatch.setattr(onnxio, "take_in", lambda *_: pytest.fail("weights are read into memory"))
    fuse(path, tmp_path / "o.onnx")
    assert [tensor.T.is_contiguous() for tensor in seen] == [True] * 3
    model, folder = load_model(tmp_path / "o.onnx")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor, role in zip(seen, ("gate", "up", "down"), strict=True):
        array = read_tensor(stored[f"fxfuse.0/{role}"], folder)
        assert isinstance(array.base, np.memmap) or isinstance(array, np.memmap)
        np.testing.assert_array_equal(array, tensor.T.numpy())


def test_memory_does_not_grow_with_the_model(tmp_path):
    """A model of 0.6 GB: what the process holds is mostly Python and its libraries."""
    result = measure_size("0.6 GB", Shape(16, 6, 768, 3072, 8000), tmp_path)
    assert result.groups == [7]
    assert result.weights > 590_000_000
    assert result.peak < 450_000_000 < result.allowed
    assert list(tmp_path.iterdir()) == []


# The data file


def test_room_is_written_in_place(tmp_path):
    with DataFile(tmp_path / "d") as data:
        room = data.room((2, 3), TensorProto.BFLOAT16)
        other = data.room((5,), TensorProto.FLOAT)
        room[...] = np.arange(6).reshape(2, 3)
        other[...] = 7
        stored, second = data.refer("w", room), data.refer("v", other)
        assert data.refer("copy", np.array(other)) is None
        assert stored is not None
        assert second is not None
        assert data.holds(stored)
        assert not data.holds(data.settled(stored))
        np.testing.assert_array_equal(read_tensor(second, tmp_path), np.full(5, 7, np.float32))
    found = read_tensor(stored, tmp_path)
    assert (found.dtype.name, found.tolist()) == ("bfloat16", [[0, 1, 2], [3, 4, 5]])


def test_only_what_is_large_is_kept_in_the_file(tmp_path):
    with DataFile(tmp_path / "d") as data:
        small, large = np.ones(3, np.uint8), np.ones((1 << 20) + 1, np.uint8)
        assert data.keep(small) is small
        kept = data.keep(large)
        assert isinstance(kept, np.memmap)
        assert data.keep(kept) is kept
        packed = large.astype(onnx.helper.tensor_dtype_to_np_dtype(TensorProto.INT4))
        assert data.keep(packed) is packed
    np.testing.assert_array_equal(kept, large)


@pytest.mark.parametrize("able", [True, False])
def test_tensors_are_copied_with_the_system_s_help_or_without(tmp_path, monkeypatch, able):
    """Not every file system copies within itself, or takes space before it is written."""

    def refuse(*_: Any) -> int:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    if not able:
        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    model, folder = load_model(save(tmp_path / "m.onnx", external=True))
    with DataFile(tmp_path / "d") as data:
        for tensor in model.graph.initializer:
            stored = onnx.TensorProto()
            stored.CopyFrom(tensor)
            if size(tensor) >= 64:
                data.add(tensor, folder, stored)
            np.testing.assert_array_equal(read_tensor(stored, tmp_path), read_tensor(tensor, folder))


def test_what_was_begun_is_copied_once_and_waited_for(tmp_path):
    model, folder = load_model(save(tmp_path / "m.onnx", external=True))
    tensor = next(each for each in model.graph.initializer if each.name == "embed")
    again = onnx.TensorProto()
    again.CopyFrom(tensor)
    with DataFile(tmp_path / "d") as data:
        data.begin([tensor, again], folder)
        for stored in (tensor, again):
            expected = read_tensor(stored, folder)
            data.add(stored, folder, stored)
            np.testing.assert_array_equal(read_tensor(stored, tmp_path), expected)
    assert tensor == again
    assert (tmp_path / "d").stat().st_size == size(tensor)


def test_a_copy_that_fails_in_the_background_is_told(tmp_path, monkeypatch):
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model, folder = load_model(save(tmp_path / "m.onnx", external=True))
    tensor = next(each for each in model.graph.initializer if each.name == "embed")
    with DataFile(tmp_path / "d") as data:
        monkeypatch.setattr(os, "copy_file_range", full, raising=False)
        data.begin([tensor], folder)
        with pytest.raises(OSError, match="No space left"):
            data.add(tensor, folder, tensor)


@pytest.mark.parametrize("form", ["opset20", "opset23", "older"])
def test_what_a_group_reads_is_not_copied_before(
    onnx_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """What is copied while the groups are folded is there afterwards: the output holds nothing unread."""
    monkeypatch.setattr(front, "_LARGE", 1)
    begun: list[str] = []
    right = DataFile.begin

    def watched(data: DataFile, tensors: Any, folder: Path) -> None:
        tensors = list(tensors)
        begun.extend(tensor.name for tensor in tensors)
        right(data, tensors, folder)

    monkeypatch.setattr(DataFile, "begin", watched)
    model = onnx.load(onnx_file("llama", form=form, dynamic=True))
    options = {"save_as_external_data": True, "location": "m.data", "size_threshold": 1024}
    onnx.save(model, tmp_path / "m.onnx", **options)
    fuse(tmp_path / "m.onnx", tmp_path / "o.onnx")
    left = {tensor.name for tensor in onnx.load(tmp_path / "o.onnx").graph.initializer}
    assert begun
    assert set(begun) <= left


def test_a_full_disk_is_met_before_anything_is_mapped(tmp_path, monkeypatch):
    """Writing through a map to a disk without room would end the process."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(fxfuse.FxfuseError, match="No space left"):
        fuse(save(tmp_path / "m.onnx"), tmp_path / "o.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


# Folding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_the_layout_of_the_memory_changes_no_number(tmp_path, dtype, layout):
    """The quick way of folding a gain is float64, rounded once."""
    kind = {torch.float32: "FLOAT", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16"}[dtype]
    model, folder = load_model(save(tmp_path / "m.onnx", dtype=int(getattr(TensorProto, kind))))
    view = read_graph(model, folder)
    blocks = find_chains(view).chains[0].blocks

    def turned(rows: int, columns: int, **like: Any) -> torch.Tensor:
        return torch.empty(columns, rows, **like).T

    wide = widen(view, blocks, torch.empty if layout == "rows" else turned)
    gates, downs = [], []
    for block in blocks:
        gain = view.stored(block.norm.gain[0].operand).double()
        gates.append((view.stored(block.ffn.gate.weight).T.double() * gain).to(dtype))
        downs.append(view.stored(block.ffn.down.weight).T)
    torch.testing.assert_close(wide.gate, torch.cat(gates), rtol=0, atol=0)
    torch.testing.assert_close(wide.down, torch.cat(downs, 1), rtol=0, atol=0)


# Time


class Counted:
    """A view that counts what it is asked."""

    def __init__(self, view: Any) -> None:
        self.view = view
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.view, name)
        if not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            return found(*arguments)

        return call


def test_finding_asks_the_same_of_every_block():
    """Ten times the graph is ten times the questions, whatever they are about."""
    counts = []
    for layers in (30, 300):
        view = Counted(read_graph(Small(layers=layers).model(), Path()))
        (chain,) = find_chains(view).chains  # type: ignore[arg-type]
        assert len(chain.blocks) == layers
        counts.append(sum(view.calls.values()) / layers)
    assert counts[1] == pytest.approx(counts[0], rel=0.1)


def test_every_step_is_timed(tmp_path):
    report = fuse(save(tmp_path / "m.onnx"), tmp_path / "o.onnx")
    steps = {"reading the model", "finding chains", "writing the wide FFNs", "verifying"}
    assert steps <= report.phases.keys()
    assert sum(report.phases.values()) <= report.seconds + 0.01  # each is rounded
    assert json.loads(report.to_json())["phases"] == report.phases


def test_a_step_that_comes_twice_is_added_up(monkeypatch):
    times = iter([0.0, 1.0, 1.0, 3.0, 3.0, 7.0])
    monkeypatch.setattr("fxfuse.clock.time.perf_counter", lambda: next(times))
    heard: list[str] = []
    phases: dict[str, float] = {}
    clock = Clock(phases, heard.append)
    for step in ("a", "b", "a"):
        clock(step)
    clock.stop()
    clock.stop()
    assert heard == ["a", "b", "a"]
    assert phases == {"a": 5.0, "b": 2.0}


# The synthetic model


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_synthetic_model_is_a_decoder_with_one_chain(tmp_path, dtype):
    shape = Shape(5, 2, 16, 32, 64, dtype)
    assert [layer for layer in range(5) if not shape.has_attention(layer)] == [2, 3]
    written = write_decoder(shape, tmp_path / "m.onnx")
    model, folder = load_model(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size == written
    (chain,) = find_chains(read_graph(model, folder)).chains
    assert [block.name for block in chain.blocks] == [f"model.layers.{i}.mlp" for i in (1, 2, 3)]
    blocks = sum(sum(map(size, _weights(model, block.name))) for block in chain.blocks)
    assert blocks == shape.largest_group
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input_ids": np.arange(12).reshape(2, 6)})
    assert logits.shape == (2, 6, 64)
    assert np.isfinite(logits).all()


def _weights(model: onnx.ModelProto, path: str) -> list[onnx.TensorProto]:
    return [
        each for each in model.graph.initializer if each.name.startswith(f"{path}.") and "proj" in each.name
    ]


def test_the_benchmark_of_finding_runs(tmp_path):
    script = Path(__file__).parents[1] / "tools" / "bench_find.py"
    words = [sys.executable, str(script), "--blocks", "20", "--output", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())["results"]
    assert [(each["kind"], each["blocks"]) for each in found] == [
        ("onnx", 20), ("onnx", 200), ("fx", 20), ("fx", 200),
    ]  # fmt: skip
