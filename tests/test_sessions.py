"""Sessions: the provider asked for or a clear word, external data from a folder, and a quiet screen."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxfuse import runtime, sessions
from fxfuse.errors import FxfuseError, InputError

WEIGHT = np.arange(16, dtype=np.float32).reshape(4, 4)


@pytest.fixture
def model() -> onnx.ModelProto:
    """y = Relu(x @ W)."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], "mm"),
        helper.make_node("Relu", ["h"], ["y"], "act"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(WEIGHT, "W")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def path(model: onnx.ModelProto, tmp_path: Path) -> Path:
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "cuda_problem", lambda: "libfoo.so is missing")
    sessions._tell_once.cache_clear()


def run(opened: sessions.Session) -> np.ndarray:
    return opened.run(None, {"x": np.ones((2, 4), np.float32)})[0]


@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_session_runs_a_path_and_bytes(model, path, provider):
    expected = np.ones((2, 4), np.float32) @ WEIGHT
    for given in (path, str(path), model.SerializeToString()):
        np.testing.assert_allclose(run(sessions.session(given, provider)), expected)


def test_external_data_come_from_the_folder_named(model, tmp_path):
    path = tmp_path / "far" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    opened = sessions.session(path.read_bytes(), "cpu", folder=path.parent)
    np.testing.assert_allclose(run(opened), np.ones((2, 4), np.float32) @ WEIGHT)


def test_options_reach_the_session(path, tmp_path):
    written = tmp_path / "optimized.onnx"
    options = {"optimized_model_filepath": str(written), "session.disable_prepacking": "1"}
    opened = sessions.session(path, "cpu", threads=1, options=options)
    assert written.is_file()
    assert opened.get_session_options().intra_op_num_threads == 1


def test_an_unknown_option_is_named(path):
    with pytest.raises(InputError, match="no 'optimised_path'"):
        sessions.session(path, "cpu", options={"optimised_path": "x"})


def test_an_unknown_provider_is_named(path):
    with pytest.raises(InputError, match="no provider 'gpu': choose auto, cuda or cpu"):
        sessions.session(path, "gpu")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no model file .*nope\.onnx"):
        sessions.session(tmp_path / "nope.onnx")


@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_the_error_of_onnxruntime_is_kept(provider):
    with pytest.raises(
        InputError, match="cannot load the model in memory: .*protobuf parsing failed"
    ) as caught:
        sessions.session(b"no model", provider)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_auto_without_cuda_says_so_once(path, no_cuda, caplog):
    caplog.set_level(logging.INFO, "fxfuse")
    for _ in range(3):
        assert sessions.provider_name(sessions.session(path)) == "cpu"
    expected = "CUDA execution provider is not available (libfoo.so is missing); running on CPU"
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_cuda_without_cuda_is_an_error_that_says_what_to_do(path, no_cuda):
    with pytest.raises(InputError, match=r"not available \(libfoo.so is missing\): install onnxruntime-gpu"):
        sessions.session(path, "cuda")


def test_auto_falls_back_when_cuda_refuses_the_model(path, monkeypatch, caplog):
    """The probe ran on CUDA, but this model does not: out of memory, say."""
    create = sessions._create

    def refuse_cuda(model, options, providers):
        if providers != [runtime.CPU]:
            raise InputError("out of memory")
        return create(model, options, providers)

    caplog.set_level(logging.INFO, "fxfuse")
    monkeypatch.setattr(sessions, "cuda_problem", lambda: None)
    monkeypatch.setattr(sessions, "_create", refuse_cuda)
    assert sessions.provider_name(sessions.session(path)) == "cpu"
    assert "out of memory" in caplog.text


needs_record = pytest.mark.skipif(
    not hasattr(runtime.load_onnxruntime().InferenceSession, "get_provider_graph_assignment_info"),
    reason="this onnxruntime does not record where nodes run",
)


@needs_record
def test_on_the_cpu_every_node_is_off_cuda(path, no_cuda):
    assert sorted(sessions.nodes_off_cuda(path)) == [("act", "Relu"), ("mm", "MatMul")]


@needs_record
def test_a_session_that_records_nothing_is_refused(path):
    plain = runtime.load_onnxruntime().InferenceSession(path, providers=[runtime.CPU])
    with pytest.raises(FxfuseError, match=r"open it with fxfuse\.sessions\.session"):
        sessions.nodes_off_cuda(plain)


def test_only_nodes_of_other_providers_are_listed():
    class Node:
        name, op_type = "n", "Add"

    class Part:
        def __init__(self, ep_name):
            self.ep_name = ep_name

        def get_nodes(self):
            return [Node]

    class Opened:
        def get_provider_graph_assignment_info(self):
            return [Part(runtime.CUDA), Part(runtime.CPU)]

    assert sessions.nodes_off_cuda(Opened()) == [("n", "Add")]


@pytest.mark.cuda
def test_on_cuda_the_model_lands_there(path):
    if problem := runtime.cuda_problem():
        pytest.skip(problem)
    opened = sessions.session(path, "cuda")
    assert sessions.provider_name(opened) == "cuda"
    assert sessions.nodes_off_cuda(opened) == []


@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_nothing_is_written_to_the_screen(path, provider):
    """The whole process, C libraries included; but for the one line that says that CUDA is not there."""
    code = f"from fxfuse.sessions import session; session({str(path)!r}, {provider!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    allowed = [line for line in done.stderr.splitlines() if "execution provider is not available" in line]
    assert done.stdout == ""
    assert done.stderr.splitlines() == allowed
    assert len(allowed) <= 1


NO_LIBRARY = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
NO_DEVICE = "CUDA failure 100: no CUDA-capable device is detected"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"[E] Failed to load library x.so with error: {NO_LIBRARY}\n\x1b[m[W] Require cuDNN", NO_LIBRARY),
        (f"x {NO_DEVICE} ; GPU=-1", NO_DEVICE),
        ("Require cuDNN 9.* and CUDA 13.*. Please install", "Require cuDNN 9.* and CUDA 13.*"),
        ("\n something else.\n", "something else"),
        ("\n", "onnxruntime gave no reason"),
    ],
)
def test_the_reason_is_read_off_what_onnxruntime_wrote(text, reason):
    assert runtime.read_reason(text) == reason


def test_held_stderr_gives_the_text_and_comes_back(capfd):
    with runtime.hold_stderr() as written:
        os.write(2, b"from C")
    os.write(2, b"after")
    assert written() == "from C"
    assert capfd.readouterr().err == "after"
