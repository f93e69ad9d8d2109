"""A contestant's process in ONNX Runtime: on the CPU for real, on CUDA with what stands in for it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fxfuse import runtime, sessions
from fxfuse.timing.onnx_runs import OnnxRuns, make
from tests.small_onnx import Small


def test_a_file_is_opened_prepared_and_run(tmp_path: Path):
    onnx.save(Small(layers=2).model(), tmp_path / "model.onnx")
    runs = make("cpu", 1, False)
    runs.open(str(tmp_path / "model.onnx"))
    runs.prepare({"input_ids": np.zeros((1, 3), np.int64)})
    assert runs.call()[0].shape[:2] == (1, 3)
    runs.wait()
    runs.close()


class Binding:
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.log.append(("input", name, value))

    def bind_output(self, name: str, device: str, number: int) -> None:
        self.log.append(("output", name, device))

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.log.append(("fixed output", name, value))

    def get_outputs(self) -> list[str]:
        return ["place of y"]

    def synchronize_outputs(self) -> None:
        self.log.append("wait")


class Session:
    """The part of an InferenceSession that is used on CUDA."""

    log: list[Any] = []

    def io_binding(self) -> Binding:
        return Binding(self.log)

    def get_outputs(self) -> list[Any]:
        return [type("Output", (), {"name": "y"})]

    def run_with_iobinding(self, binding: Binding) -> None:
        self.log.append("run")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of every session that is opened."""
    found: list[Any] = []

    def session(path: str, provider: str, *, threads: int | None, cuda_options: dict[str, str]) -> Session:
        assert provider == "cuda"
        found.append(cuda_options)
        return Session()

    values = type("OrtValue", (), {"ortvalue_from_numpy": staticmethod(lambda array, *_: array.shape)})
    monkeypatch.setattr(runtime, "load_onnxruntime", lambda: type("Runtime", (), {"OrtValue": values}))
    monkeypatch.setattr(sessions, "session", session)
    monkeypatch.setattr(Session, "log", [])
    return found


def test_on_cuda_inputs_and_outputs_stay_there(opened: list[Any]):
    runs = OnnxRuns("cuda", None, False)
    runs.open("model.onnx")
    runs.prepare((4, 8, "float16"))
    assert opened == [{}]
    assert Session.log == [("input", "x", (1, 4, 8)), ("output", "y", "cuda"), "run", "wait"]


def test_a_cuda_graph_has_places_that_stay_and_a_session_for_each_shape(opened: list[Any]):
    runs = OnnxRuns("cuda", None, True)
    runs.open("model.onnx")
    runs.prepare((4, 8, "float16"))
    runs.prepare((1, 8, "float16"))
    graph = {"enable_cuda_graph": "1"}
    assert opened == [graph, graph, {}, graph, {}]
    assert ("fixed output", "y", "place of y") in Session.log
