"""Tools that rewrite ONNX files, each run in a process of its own, with its memory watched from outside."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.benchmark.size import held_by

__all__ = ["TOOLS", "Tool", "ToolResult", "ToolRun", "missing", "output_of", "run_tool"]

_ROOT = Path(__file__).resolve().parents[2]
_FUSE = _ROOT / "tools" / "onnx_fuse.py"
_ONNXSCRIPT = """
import sys, onnx_ir, onnxscript.optimizer
model = onnx_ir.load(sys.argv[1])
onnxscript.optimizer.optimize(model)
onnx_ir.save(model, sys.argv[2], external_data=sys.argv[2].rsplit("/", 1)[-1] + ".data")
"""


@dataclass(frozen=True)
class Tool:
    """A tool: the package that it is in, and Python's arguments that run it from a file to a file."""

    name: str
    package: str
    words: Callable[[Path, Path], Sequence[str | Path]]


TOOLS = (
    Tool("fxfuse", "fxfuse", lambda m, out: [_FUSE, m, "-o", out, "--provider", "cpu"]),
    Tool("onnxslim", "onnxslim", lambda m, out: ["-m", "onnxslim", m, out]),
    Tool(
        "onnxruntime.transformers.optimizer",
        "onnxruntime",
        lambda m, out: [
            "-m", "onnxruntime.transformers.optimizer", "--input", m, "--output", out,
            "--use_external_data_format",
        ],
    ),
    Tool("onnxscript.optimizer", "onnxscript", lambda m, out: ["-c", _ONNXSCRIPT, m, out]),
)  # fmt: skip


@dataclass(frozen=True)
class ToolRun:
    """Seconds of a process and, `synced`, until its output was on the disk, too; bytes as in `SizeResult`."""

    seconds: float
    synced: float
    cpu: float
    peak: int
    rss: int
    problem: str | None = None


@dataclass(frozen=True)
class ToolResult:
    """All runs of one tool, and what its output is: `found` is what tools.benchmark.outputs tells."""

    name: str
    runs: tuple[ToolRun, ...]
    found: dict[str, Any]

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(run.seconds for run in self.runs)

    @property
    def peak(self) -> int:
        """The most memory of all runs that the system could not drop."""
        return max(run.peak for run in self.runs)

    @property
    def rss(self) -> int:
        """The most memory of all runs, mapped files included."""
        return max(run.rss for run in self.runs)

    @property
    def problem(self) -> str | None:
        """Why there is no valid output."""
        return next((run.problem for run in self.runs if run.problem), self.found.get("problem"))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        more = {
            "seconds": round(self.seconds, 3),
            "peak": self.peak,
            "rss": self.rss,
            "problem": self.problem,
        }
        return asdict(self) | more


def missing(tools: Sequence[Tool]) -> str | None:
    """What to install, in one sentence; None where all tools are there."""
    absent = [tool.name for tool in tools if importlib.util.find_spec(tool.package) is None]
    if not absent:
        return None
    names = " and ".join(absent)
    return (
        f"{names} cannot be imported: pip install -c constraints.txt -e '.[bench]' installs what is missing."
    )


def run_tool(tool: Tool, model: Path, folder: Path) -> ToolRun:
    """Run a tool on `model` once; the output is `folder`/out.onnx."""
    _read(model)
    log = folder / "log"
    words = [sys.executable, *tool.words(model, folder / "out.onnx")]
    started = time.perf_counter()
    with open(log, "w") as file:
        process = subprocess.Popen(words, cwd=_ROOT, stdout=file, stderr=file, preexec_fn=_first_to_go)
        peak, code, used = _watch(process.pid)
        process.returncode = code
    seconds = time.perf_counter() - started
    for each in folder.iterdir():
        handle = os.open(each, os.O_RDWR)
        os.fsync(handle)
        os.close(handle)
    synced = time.perf_counter() - started
    lines = log.read_text(errors="replace").strip().splitlines()
    log.unlink()
    problem = f"exit code {code}: {lines[-1] if lines else 'nothing was said'}" if code else None
    return ToolRun(
        round(seconds, 3), round(synced, 3), round(used.ru_utime + used.ru_stime, 3), peak,
        used.ru_maxrss * 1024, problem,
    )  # fmt: skip


def output_of(model: Path, out: Path) -> dict[str, Any]:
    """What a tool's output is, told by a process of its own."""
    words = [sys.executable, "-m", "tools.benchmark.outputs", model, out]
    done = subprocess.run(words, cwd=_ROOT, capture_output=True, text=True, preexec_fn=_first_to_go)
    if done.returncode:
        return {"problem": (done.stderr.strip().splitlines() or ["it cannot be looked at"])[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _read(model: Path) -> None:
    """Bring a model into the system's cache, so that no tool waits for the disk."""
    for path in (model, Path(f"{model}.data")):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def _watch(pid: int) -> tuple[int, int, resource.struct_rusage]:
    """The most memory of a process, its exit code and what it used."""
    peak = 0
    while True:
        ended, status, used = os.wait4(pid, os.WNOHANG)
        if ended:
            return peak, os.waitstatus_to_exitcode(status), used
        peak = max(peak, held_by(pid))
        time.sleep(0.02)


def _first_to_go() -> None:
    """Where memory runs out, the system is to end this process and no other."""
    if os.path.exists("/proc/self/oom_score_adj"):
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
