"""What a user can get wrong: one clear sentence, the right exit code, and not a file more than before."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxfuse import cli
from tests.small_onnx import Small, save

Edit = Callable[[onnx.ModelProto], object]


@pytest.fixture
def refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refuses(*arguments, code=2): run on m.onnx and return the sentence; no file may appear or change."""

    def run(*arguments: object, code: int = 2, model: str = "m.onnx") -> str:
        before = snapshot(tmp_path)
        words = ["fuse", str(tmp_path / model), "--provider", "cpu", *map(str, arguments)]
        assert cli.main(words) == code
        out, err = capfd.readouterr()
        assert snapshot(tmp_path) == before
        assert out == ""
        assert re.fullmatch(r"fxfuse: error: [^\n]+[.)]\n", err)
        assert "internal error" not in err
        return err

    return run


def snapshot(folder: Path) -> dict[str, Any]:
    def state(path: Path) -> Any:
        return path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None

    return {str(path): state(path) for path in sorted(folder.rglob("*"))}


def edited(path: Path, edit: Edit, **parts: Any) -> Path:
    model = Small(**parts).model()
    edit(model)
    return save(path, model)


def with_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == name)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))

    return edit


def with_input(name: str, kind: int, shape: list[Any] | None) -> Edit:
    return lambda model: model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))


def with_node(index: int, **fields: Any) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for name, value in fields.items():
            setattr(model.graph.node[index], name, value)

    return edit


def with_ids(size: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for dim in model.graph.input[0].type.tensor_type.shape.dim:
            dim.dim_value = size

    return edit


# -- the model -------------------------------------------------------------------------------------

NOT_MODELS = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is no model\n", "is not an ONNX model"),
    "json": (b'{"a": 1}\n' * 50, "is not an ONNX model"),
    "zip": (b"PK\x03\x04" + bytes(100), "is not an ONNX model"),
    "cut": (Small().model().SerializeToString()[:5000], "is not an ONNX model"),
    "no graph": (onnx.ModelProto(ir_version=8).SerializeToString(), "it has no graph"),
}


@pytest.mark.parametrize("name", NOT_MODELS)
def test_no_model(refuses, tmp_path, name):
    content, reason = NOT_MODELS[name]
    (tmp_path / "m.onnx").write_bytes(content)
    assert reason in refuses()


def test_a_folder_and_nothing(refuses, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "is a folder: give the model file in it" in refuses(model="folder")
    assert "There is no model file" in refuses(model="gone.onnx")
    (tmp_path / "folder" / "config.json").write_text("{}")
    assert (
        "is the folder of a checkpoint, which this does not read: fuse it with fxfuse checkpoint"
        in refuses(model="folder")
    )


def test_external_data_missing_short_and_outside(refuses, tmp_path):
    path = save(tmp_path / "m.onnx", external=True)
    data = tmp_path / "m.onnx.data"
    content = data.read_bytes()
    data.write_bytes(content[:-9000])
    assert "m.onnx.data is cut short" in refuses()
    data.unlink()
    assert "m.onnx.data, which is missing" in refuses()
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../escaped.data"
    onnx.save(model, path)
    assert "outside its folder (../escaped.data)" in refuses()


BAD_MODELS: dict[str, tuple[Edit, str]] = {
    "nan weights": (
        with_weight(
            "model.layers.1.mlp.gate_proj.weight", lambda w: np.where(w > 0.5, np.nan, w).astype("f4")
        ),
        "gives NaN or infinity at model.layers.1.mlp",
    ),
    "infinite stream": (with_weight("embed", lambda w: w * 0 + np.inf), "infinity at model.layers.0.mlp"),
    "infinite activations": (
        with_weight("embed", lambda w: w * np.float32(1e38)),
        "model.layers.0-2.mlp overflow or lose all precision in float32",
    ),
    "nan logits": (with_weight("head", lambda w: w * np.nan), "infinity at its output 'logits'"),
    "unknown op": (with_node(0, op_type="Gizmo"), "cannot load the model: .* No Op registered for Gizmo"),
    "unknown domain": (with_node(0, domain="acme"), "No opset import for domain 'acme'"),
    "unknown ir": (lambda m: setattr(m, "ir_version", 99), "Unsupported model IR version: 99"),
    "unknown opset": (lambda m: setattr(m.opset_import[0], "version", 99), "Opset 99 is under development"),
    "bytes for half a weight": (
        lambda m: setattr(m.graph.initializer[0], "raw_data", m.graph.initializer[0].raw_data[:1024]),
        "is damaged: tensor embed holds 1024 bytes of 2048",
    ),
    "a weight of no type": (
        lambda m: setattr(m.graph.initializer[0], "data_type", 0),
        r"is damaged: tensor embed has no known type \(0\)",
    ),
    "no opset": (lambda m: m.ClearField("opset_import"), "it has no opset"),
    "no output": (lambda m: m.graph.ClearField("output"), "it has no output"),
    "same node names": (
        lambda m: [setattr(each, "name", "n") for each in m.graph.node],
        r"two nodes with same node name \(n\)",
    ),
    "reads nothing": (
        lambda m: m.graph.node[3].input.__setitem__(0, "ghost"),
        "'ghost' is not a graph input",
    ),
    "cycle": (lambda m: m.graph.node[0].input.__setitem__(1, "logits"), "is not acyclic"),
    "written twice": (
        lambda m: m.graph.node[5].output.__setitem__(0, m.graph.node[4].output[0]),
        "Duplicate definition of name",
    ),
    "string input": (with_input("s", TensorProto.STRING, [1]), "'s' holds strings"),
    "complex input": (with_input("s", TensorProto.COMPLEX64, [1]), "'s' of type complex64"),
    "float8 input": (with_input("s", TensorProto.FLOAT8E4M3FN, [1]), "fails on the measuring inputs"),
    "int4 input": (with_input("s", TensorProto.INT4, [2]), "'s' of type int4"),
    "untyped input": (with_input("s", TensorProto.UNDEFINED, [2]), r"'s' has no known type \(0\)"),
    "input of a type to come": (with_input("s", 77, [2]), r"'s' has no known type \(77\)"),
    "shapeless input": (with_input("s", TensorProto.FLOAT, None), "'s' has no shape"),
    "sequence input": (
        lambda m: m.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)),
        "'s' is a sequence_type",
    ),
    "no tokens": (with_ids(0), "hold no tokens"),
    "more tokens than memory": (with_ids(1 << 40), "shapes cannot be drawn"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_model(refuses, tmp_path, name):
    edit, reason = BAD_MODELS[name]
    edited(tmp_path / "m.onnx", edit)
    assert re.search(reason, refuses())


# -- inputs ----------------------------------------------------------------------------------------

IDS = np.zeros((2, 5), np.int64)
BAD_INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "wrong name": ({"input_id": IDS}, "did you mean 'input_ids'"),
    "one too many": ({"input_ids": IDS, "mask": IDS}, "'mask', which is no input of the model"),
    "none": ({}, "lacks the input 'input_ids': the model expects int64[batch, sequence]"),
    "shape": ({"input_ids": IDS[0]}, "the shape (5,) where the model expects int64[batch, sequence]"),
    "type": ({"input_ids": IDS + 0.5}, "as float64 where the model expects int64"),
    "pickled": ({"input_ids": np.array([{1: 2}], object)}, "pickled objects in 'input_ids'"),
    "no tokens": ({"input_ids": IDS[:, :0]}, "hold no tokens"),
    "outside the vocabulary": ({"input_ids": IDS + 99}, "indices element out of data bounds"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs(refuses, tmp_path, name):
    values, reason = BAD_INPUTS[name]
    save(tmp_path / "m.onnx")
    np.savez(tmp_path / "i.npz", **values)
    assert reason in refuses("--inputs", tmp_path / "i.npz")


def test_inputs_that_are_no_npz(refuses, tmp_path):
    save(tmp_path / "m.onnx")
    (tmp_path / "i.npz").write_bytes(b"no archive")
    np.save(tmp_path / "i.npy", IDS)
    np.savez(tmp_path / "good.npz", input_ids=IDS)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-30])
    assert "is no .npz file" in refuses("--inputs", tmp_path / "i.npz")
    assert "is no .npz file" in refuses("--inputs", tmp_path / "i.npy")
    assert "is no .npz file" in refuses("--inputs", tmp_path / "cut.npz")
    assert "There is no input file" in refuses("--inputs", tmp_path / "gone.npz")
    assert "There is no input file" in refuses("--inputs", tmp_path)
    assert "gone.npz" in refuses("--inputs", tmp_path / "good.npz", "--inputs", tmp_path / "gone.npz")


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--include", "("], "--include='(' is not a regular expression"),
        (["--exclude", "*"], "--exclude='*' is not a regular expression"),
        (["--max-group", "1"], "--max-group must be a whole number of at least 2, not 1"),
        (["--max-group", "two"], "--max-group: invalid int value: 'two'"),
        (["--min-sqnr", "nan"], "--min-sqnr must be a number, not nan"),
        (["--min-sqnr", "high"], "--min-sqnr: invalid float value: 'high'"),
        (["--min-sqnr", "3", "--no-budget"], "--no-budget: not allowed with argument --min-sqnr"),
        (["--max-kl", "-1"], "--max-kl must not be negative"),
        (["--max-kl", "nan"], "--max-kl must be a number"),
        (["--seed", "-1"], "--seed must be a whole number of at least 0, not -1"),
        (["--provider", "tpu"], "--provider: invalid choice: 'tpu'"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["-o"], "expected one argument"),
    ],
)
def test_bad_arguments(refuses, tmp_path, arguments, reason):
    save(tmp_path / "m.onnx")
    assert reason in refuses(*arguments)


def test_cuda_without_cuda(refuses, tmp_path, monkeypatch):
    monkeypatch.setattr("fxfuse.sessions.cuda_problem", lambda: "no GPU")
    save(tmp_path / "m.onnx")
    assert "CUDA was asked for and is not available (no GPU)" in refuses("--provider", "cuda")


def test_max_kl_without_logits(refuses, tmp_path):
    def edit(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("ArgMax", ["logits"], ["ids"], "argmax", axis=-1))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("ids", TensorProto.INT64, None))

    edited(tmp_path / "m.onnx", edit)
    assert "--max-kl needs a model that returns logits" in refuses("--max-kl", "1")


# -- places ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True])
def test_the_input_is_never_overwritten(refuses, tmp_path, external):
    path = save(tmp_path / "m.onnx", external=external)
    (tmp_path / "link.onnx").symlink_to("m.onnx")
    (tmp_path / "hard.onnx").hardlink_to(path)
    for name in ("m.onnx", "link.onnx", "hard.onnx"):
        assert "is the input" in refuses("-o", tmp_path / name)
    if external:
        assert "is the input" in refuses("-o", tmp_path / "m.onnx.data")
    else:
        assert "is the input" in refuses("-o", path, model="link.onnx")


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_places_that_no_model_can_take(refuses, tmp_path, force):
    save(tmp_path / "m.onnx")
    for place, reason in {
        tmp_path / "no" / "o.onnx": "does not exist",
        tmp_path: "is a folder",
        Path("/proc/o.onnx"): "cannot be written",
        tmp_path / ("o" * 300): "File name too long",
    }.items():
        assert reason in refuses("-o", place, *force)


def test_a_device_or_pipe_is_never_replaced(refuses, tmp_path):
    import os

    save(tmp_path / "m.onnx")
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refuses("-o", tmp_path / "pipe", "--force")


def test_what_exists_is_kept(refuses, tmp_path):
    save(tmp_path / "m.onnx", external=True)
    (tmp_path / "o.onnx").write_text("mine")
    assert "exists already" in refuses("-o", tmp_path / "o.onnx")
    (tmp_path / "o.onnx").rename(tmp_path / "p.onnx.data")
    assert "p.onnx.data exists already" in refuses("-o", tmp_path / "p.onnx")


def test_a_report_takes_no_other_files_place(refuses, tmp_path):
    save(tmp_path / "m.onnx", external=True)
    np.savez(tmp_path / "i.npz", input_ids=IDS)
    (tmp_path / "link").symlink_to("m.onnx")
    for name in ("m.onnx", "link", "m.onnx.data", "m.fused.onnx", "m.fused.onnx.data", "i.npz"):
        assert "The report would overwrite" in refuses("--report", tmp_path / name, "--force")
    assert "no folder" in refuses("--report", tmp_path / "no" / "r.json")
    assert "which is a folder" in refuses("--report", tmp_path)
    assert "cannot be written" in refuses("--report", "/proc/r.json")


# -- odd models that are right ----------------------------------------------------------------------


def tapped(name: str) -> Edit:
    return lambda m: m.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def made_sparse(name: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        place = next(i for i, each in enumerate(model.graph.initializer) if each.name == name)
        dense = numpy_helper.to_array(model.graph.initializer.pop(place))
        where = np.flatnonzero(dense > 0)
        values = numpy_helper.from_array(dense.flat[where], name)
        indices = numpy_helper.from_array(where, f"{name}_indices")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, list(dense.shape)))

    return edit


def renamed(model: onnx.ModelProto) -> None:
    """No name tells anything."""
    names = {tensor.name: f"w{index}" for index, tensor in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for index, node in enumerate(model.graph.node):
        node.name = ""
        names |= {each: f"t{index}" for each in node.output if each != "logits"}
        node.input[:] = [names.get(each, each) for each in node.input]
        node.output[:] = [names.get(each, each) for each in node.output]


def with_classes_ruled_out(model: onnx.ModelProto) -> None:
    mask = np.where(np.arange(32) < 8, -np.inf, 0).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(helper.make_node("Add", ["scores", "mask"], ["logits"], "rule_out"))


ODD_MODELS: dict[str, tuple[Edit, dict[str, Any], list[int]]] = {
    "no names": (lambda m: None, {"paths": False}, [3]),
    "names that tell nothing": (renamed, {}, [3]),
    "float64": (lambda m: None, {"dtype": TensorProto.DOUBLE}, [3]),
    "float16": (lambda m: None, {"dtype": TensorProto.FLOAT16}, [3]),
    "bfloat16": (lambda m: None, {"dtype": TensorProto.BFLOAT16}, [3]),
    "sparse head": (made_sparse("head"), {}, [3]),
    "sparse gate": (made_sparse("model.layers.3.mlp.gate_proj.weight"), {"layers": 4}, [3]),
    "stream as output": (tapped("x1"), {}, [2]),
    "stream as output in the middle": (tapped("x2"), {"layers": 5}, [2, 3]),
    "gate as output": (tapped("model.layers.1.mlp/gate"), {}, [2]),
    "logits of minus infinity": (with_classes_ruled_out, {}, [3]),
    "empty input": (with_input("none", TensorProto.FLOAT, [0, 4]), {}, [3]),
}


@pytest.mark.parametrize("name", ODD_MODELS)
def test_odd_model(tmp_path, name):
    import json

    edit, parts, chains = ODD_MODELS[name]
    path = edited(tmp_path / "m.onnx", edit, **parts)
    assert (
        cli.main(
            ["fuse", str(path), "--provider", "cpu", "--report", str(tmp_path / "r.json"), "--min-sqnr", "5"]
        )
        == 0
    )
    report = json.loads((tmp_path / "r.json").read_text())
    assert [each["length"] for each in report["chains"]] == chains
    assert (tmp_path / "m.fused.onnx").is_file()
    old, new = onnx.load(path), onnx.load(tmp_path / "m.fused.onnx")
    assert [each.name for each in old.graph.output] == [each.name for each in new.graph.output]
