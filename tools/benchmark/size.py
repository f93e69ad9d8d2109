"""One model made, copied and fused in a process of its own, with its memory watched from outside."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.benchmark.synthetic import Shape, write_decoder

__all__ = ["SizeResult", "held_by", "measure_size"]

_ROOT = Path(__file__).resolve().parents[2]
_JUDGING = ("running the model on the measuring inputs", "measuring groups", "verifying")


@dataclass(frozen=True)
class SizeResult:
    """Bytes and seconds. `peak` is of memory that the system cannot drop; `rss` counts mapped files, too."""

    name: str
    weights: int
    largest_group: int
    peak: int
    rss: int
    copying: float
    total: float
    phases: dict[str, float]
    groups: list[int]
    notes: list[str]

    @property
    def allowed(self) -> int:
        """Three times the largest group plus 500 MB."""
        return 3 * self.largest_group + 500_000_000

    @property
    def fusing(self) -> float:
        """The process from start to end, but for measuring and verifying."""
        return self.total - sum(self.phases.get(step, 0.0) for step in _JUDGING)

    @property
    def ratio(self) -> float:
        """Times as long as copying the same bytes."""
        return self.fusing / self.copying

    @property
    def fits(self) -> bool:
        """Whether the bound of memory is held."""
        return self.peak <= self.allowed

    @property
    def is_fast(self) -> bool:
        """Whether the bound of time is held."""
        return self.ratio <= 1.5

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        more = {"allowed": self.allowed, "fusing": round(self.fusing, 3), "ratio": round(self.ratio, 3)}
        return asdict(self) | more


def measure_size(name: str, shape: Shape, folder: Path | None = None) -> SizeResult:
    """Make the model in `folder`, fuse it and copy it; everything that was made is removed again.

    Raises:
        RuntimeError: Fusing failed.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        model = Path(place) / "model.onnx"
        weights = write_decoder(shape, model)
        os.sync()
        before = _copy(model)
        fused = _fuse(model, Path(place))
        for each in Path(place).glob("fused.onnx*"):
            each.unlink()
        # A machine that others use is slower at one time than at another.
        copying = (before + _copy(model)) / 2
    report = fused.pop("report")
    groups = [len(group["blocks"]) for group in report["groups"]]
    return SizeResult(
        name, weights, shape.largest_group, copying=copying, phases=report["phases"], groups=groups,
        notes=report["notes"], **fused,
    )  # fmt: skip


def _copy(model: Path) -> float:
    """Seconds that cp and sync take for the model and its data."""
    target = model.parent / "copy"
    target.mkdir()
    started = time.perf_counter()
    subprocess.run(["cp", model, f"{model}.data", target], check=True)
    subprocess.run(["sync", *target.iterdir()], check=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def _fuse(model: Path, folder: Path) -> dict[str, Any]:
    words = [
        sys.executable, _ROOT / "tools" / "onnx_fuse.py", model, "-o", folder / "fused.onnx", "--no-budget",
        "--provider", "cpu", "--report", folder / "report.json",
    ]  # fmt: skip
    started = time.perf_counter()
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(["/usr/bin/time", "-v", *words], stdout=log, stderr=log)
        peak = _watch(process)
        total = time.perf_counter() - started
        log.seek(0)
        text = log.read()
    if process.returncode:
        raise RuntimeError(f"fusing failed:\n{text}")
    rss = int(re.findall(r"Maximum resident set size \(kbytes\): (\d+)", text)[0]) * 1024
    report = json.loads((folder / "report.json").read_text())
    return {"peak": peak, "rss": rss, "total": total, "report": report}


def _watch(process: subprocess.Popen[Any]) -> int:
    """The most memory that time's child and its children held, files apart, until it ends."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(held_by, _children(process.pid))))
        time.sleep(0.02)
    return peak


def _children(pid: int) -> list[int]:
    try:
        found = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*found, *(below for each in found for below in _children(each))]


def held_by(pid: int) -> int:
    """RssAnon and RssShmem of a process, in bytes."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(count) * 1024 for count in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", text))
