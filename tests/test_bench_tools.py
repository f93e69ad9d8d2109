"""fxfuse beside other tools: what is judged, and what is said where a tool is missing."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from tools import bench_tools
from tools.benchmark import others
from tools.benchmark.others import TOOLS, Tool, ToolResult, ToolRun, missing, run_tool
from tools.benchmark.synthetic import Shape, write_decoder


def result(name: str, seconds: float, peak: int, problem: str | None = None) -> ToolResult:
    runs = [ToolRun(each, each, each, peak, peak, problem) for each in (seconds, seconds + 9, seconds - 1)]
    return ToolResult(name, tuple(runs), {"nodes": [9, 5], "products": [3, 1], "new": {"Split": 1}})


def test_bounds_are_of_medians_and_of_the_most_memory():
    own, slim, ort = result("fxfuse", 5, 40), result("onnxslim", 6, 100), result(bench_tools.JUDGED[1], 4, 79)
    script = result("onnxscript.optimizer", 1, 1)
    assert list(bench_tools.judge([own, slim, ort, script]).values()) == [True, True, True, False, False]
    table = bench_tools.draw([own, slim, ort, script], 2_000_000_000)
    assert table.row_count == 4


def test_a_tool_that_fails_is_behind_and_says_why():
    broken = result("onnxslim", 1, 100, "exit code 1: no memory")
    own = result("fxfuse", 5, 40)
    assert list(bench_tools.judge([own, broken]).values()) == [True, True, True]
    assert broken.to_dict()["problem"] == "exit code 1: no memory"
    assert own.to_dict()["seconds"] == 5


def test_a_missing_tool_is_told_in_one_sentence(monkeypatch, capsys):
    absent = dataclasses.replace(TOOLS[1], package="fxfuse_has_no_such_package")
    assert missing(TOOLS[:1]) is None
    monkeypatch.setattr(bench_tools, "TOOLS", (TOOLS[0], absent))
    assert bench_tools.main([]) == 2
    told = capsys.readouterr().err
    assert told.startswith("onnxslim cannot be imported: pip install")
    assert "[bench]" in told


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is watched in /proc")
def test_a_tool_runs_in_a_process_of_its_own(tmp_path):
    model = tmp_path / "m.onnx"
    write_decoder(Shape(3, 1, 16, 32, 64), model)
    copying = Tool(
        "cp", "shutil", lambda m, out: ["-c", f"import shutil; shutil.copy({str(m)!r}, {str(out)!r})"]
    )
    failing = Tool("no", "sys", lambda m, out: ["-c", "import sys; sys.exit('it does not fit')"])
    own = tmp_path / "own"
    own.mkdir()
    done = run_tool(copying, model, own)
    assert done.problem is None
    assert 0 < done.seconds <= done.synced
    assert done.rss > 1_000_000
    assert [each.name for each in own.iterdir()] == ["out.onnx"]
    assert run_tool(failing, model, own).problem == "exit code 1: it does not fit"
    assert others.output_of(model, model) == {
        "nodes": [83, 83], "products": [22, 22], "new": {}, "error": 0.0,
    }  # fmt: skip
