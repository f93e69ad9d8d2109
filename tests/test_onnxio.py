"""ONNX files and their external data: read lazily, checked, written without a change to what they hold."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxfuse.errors import InputError
from fxfuse.external import data_files, load_data, size
from fxfuse.onnxio import (
    count_parameters,
    file_size,
    inferred_shapes,
    load_model,
    read_tensor,
    total_bytes,
    write_model,
)
from tests.small_onnx import HIDDEN, VOCAB, WIDTH, Small, save


def arrays(model: onnx.ModelProto, folder: Path) -> dict[str, np.ndarray]:
    return {tensor.name: read_tensor(tensor, folder) for tensor in model.graph.initializer}


def edit(path: Path, key: str, value: str) -> None:
    """Change one entry of every external tensor."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value
    onnx.save(model, path)


@pytest.mark.parametrize("external", [False, True])
def test_weights_read_as_they_were_stored(tmp_path, external):
    path = save(tmp_path / "m.onnx", external=external)
    model, folder = load_model(path)
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in Small().weights}
    found = arrays(model, folder)
    assert folder == tmp_path
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_loading_leaves_external_data_on_the_disk(tmp_path):
    model, folder = load_model(save(tmp_path / "m.onnx", external=True))
    assert model.ByteSize() < 10_000
    assert data_files(model, folder) == [tmp_path / "m.onnx.data"]


def test_a_download_cache_of_links_is_followed(tmp_path):
    """snapshot/m.onnx -> ../blobs/aa, snapshot/m.onnx.data -> ../blobs/bb"""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    path = save(snapshot / "m.onnx", external=True)
    expected = arrays(*load_model(path))
    for name, blob in (("m.onnx", "aa"), ("m.onnx.data", "bb")):
        (snapshot / name).rename(blobs / blob)
        (snapshot / name).symlink_to(f"../blobs/{blob}")
    model, folder = load_model(path)
    assert data_files(model, folder) == [blobs / "bb"]
    assert all(np.array_equal(each, expected[name]) for name, each in arrays(model, folder).items())


def test_data_with_a_second_hard_link_are_read(tmp_path):
    path = save(tmp_path / "m.onnx", external=True)
    os.link(tmp_path / "m.onnx.data", tmp_path / "copy.data")
    model, folder = load_model(path)
    assert np.isfinite(arrays(model, folder)["embed"]).all()
    load_data(model, folder)
    assert data_files(model, folder) == []


def test_data_in_a_folder_below_are_read(tmp_path):
    path = save(tmp_path / "m.onnx", external=True)
    (tmp_path / "weights").mkdir()
    (tmp_path / "m.onnx.data").rename(tmp_path / "weights" / "all")
    edit(path, "location", "weights/all")
    assert np.isfinite(arrays(*load_model(path))["embed"]).all()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("location", "../m.onnx.data", "outside its folder"),
        ("location", "{tmp}/m.onnx.data", "outside its folder"),
        ("location", "", "does not say where tensor"),
        ("location", "a\0b", "does not say where tensor"),
        ("location", "gone.data", r"needs its weights in .*gone\.data, which is missing"),
        ("location", "folder", "which is missing"),
        ("offset", "-5", "does not say where tensor"),
        ("offset", "five", "does not say where tensor"),
        ("offset", str(1 << 60), "is cut short: tensor .* ends at byte"),
        ("length", "8", "8 bytes where it has"),
    ],
)
def test_data_that_make_no_sense_are_refused(tmp_path, key, value, reason):
    path = save(tmp_path / "m.onnx", external=True)
    (tmp_path / "folder").mkdir()
    edit(path, key, value.replace("{tmp}", str(tmp_path)))
    with pytest.raises(InputError, match=reason):
        load_model(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    path = save(tmp_path / "model" / "m.onnx", external=True)
    (tmp_path / "model" / "m.onnx.data").rename(tmp_path / "secret")
    (tmp_path / "model" / "m.onnx.data").symlink_to("../secret")
    with pytest.raises(InputError, match=r"outside its folder \(m\.onnx\.data\)"):
        load_model(path)


def test_data_cut_short_are_refused(tmp_path):
    path = save(tmp_path / "m.onnx", external=True)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(InputError, match="cut short: tensor .*, the file at 5000"):
        load_model(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"no model at all", "is not an ONNX model"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "it has no graph"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, content, reason):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.999])
def test_a_truncated_model_is_refused(tmp_path, share):
    path = save(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match="is not an ONNX model"):
        load_model(path)


@pytest.mark.parametrize(("external", "wanted"), [(False, False), (False, True), (True, False), (True, True)])
def test_writing_moves_weights_and_changes_nothing(tmp_path, external, wanted):
    path = save(tmp_path / "m.onnx", external=external)
    model, folder = load_model(path)
    before = model.SerializeToString()
    out = tmp_path / "out"
    out.mkdir()
    written = write_model(model, folder, out / "o.onnx", out / "o.data" if wanted else None)
    assert model.SerializeToString() == before
    assert sorted(each.name for each in out.iterdir()) == (["o.data", "o.onnx"] if wanted else ["o.onnx"])
    again, place = load_model(out / "o.onnx")
    assert again == written
    expected = arrays(model, folder)
    assert all(np.array_equal(each, expected[name]) for name, each in arrays(again, place).items())
    assert list(again.graph.node) == list(model.graph.node)
    onnxruntime.InferenceSession(out / "o.onnx", providers=["CPUExecutionProvider"])


def test_small_tensors_stay_where_shapes_are_read_from_them(tmp_path):
    model, folder = load_model(save(tmp_path / "m.onnx"))
    written = write_model(model, folder, tmp_path / "o.onnx", tmp_path / "o.data")
    inside = {each.name for each in written.graph.initializer if each.HasField("raw_data")}
    assert {"axes", "eps", "gain"} <= inside
    assert "embed" not in inside


def test_values_in_constant_nodes_stay_inside(tmp_path):
    """ONNX Runtime loads no external data for them."""
    small = Small()
    big = numpy_helper.from_array(np.zeros((64, 64), np.float32), "big")
    small.nodes.insert(0, helper.make_node("Constant", [], ["unread"], "constant", value=big))
    model, folder = load_model(save(tmp_path / "m.onnx", small.model()))
    written = write_model(model, folder, tmp_path / "o.onnx", tmp_path / "o.data")
    assert written.graph.node[0].attribute[0].t.HasField("raw_data")
    onnxruntime.InferenceSession(tmp_path / "o.onnx", providers=["CPUExecutionProvider"])


def test_offsets_are_aligned_for_mapping(tmp_path):
    model, folder = load_model(save(tmp_path / "m.onnx", external=True))
    written = write_model(model, folder, tmp_path / "o.onnx", tmp_path / "o.data")
    offsets = [e.value for t in written.graph.initializer for e in t.external_data if e.key == "offset"]
    assert offsets
    assert all(int(offset) % 4096 == 0 for offset in offsets)


def test_sizes(tmp_path):
    path = save(tmp_path / "m.onnx", external=True, layers=1)
    model, folder = load_model(path)
    block = HIDDEN + 3 * HIDDEN * WIDTH
    floats = 2 * VOCAB * HIDDEN + HIDDEN + block + 2
    assert count_parameters(model) == floats
    assert total_bytes(model) == 4 * floats + 8
    files = path.stat().st_size + (tmp_path / "m.onnx.data").stat().st_size
    assert file_size(model, path, folder) == files


@pytest.mark.parametrize(
    ("kind", "dims", "expected"),
    [
        (TensorProto.FLOAT, [2, 3], 24),
        (TensorProto.BFLOAT16, [3], 6),
        (TensorProto.FLOAT8E4M3FN, [3], 3),
        (TensorProto.INT4, [3], 2),
        (TensorProto.UINT4, [4], 2),
        (TensorProto.FLOAT, [], 4),
        (TensorProto.FLOAT, [0, 7], 0),
        (99, [5], 5),
    ],
)
def test_size_of_a_tensor(kind, dims, expected):
    assert size(TensorProto(data_type=kind, dims=dims)) == expected


def test_shapes_are_inferred_without_looking_at_weights(tmp_path):
    model, _ = load_model(save(tmp_path / "m.onnx", external=True))
    before = model.SerializeToString()
    with inferred_shapes(model):
        shapes = {v.name: len(v.type.tensor_type.shape.dim) for v in model.graph.value_info}
    assert shapes["x1"] == 3
    assert model.SerializeToString() == before


def test_a_model_that_inference_fails_on_stays_as_it_is():
    small = Small()
    small.nodes[3].op_type = "Gizmo"
    model = small.model()
    before = model.SerializeToString()
    with inferred_shapes(model):
        pass
    assert model.SerializeToString() == before
