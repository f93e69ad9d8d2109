"""A checkpoint made, copied, fused, and fused again under kills, each in a process of its own.

make -> cp + sync -> fxfuse checkpoint under GNU time -v -> the same, killed N times -> compare bytes
"""

from __future__ import annotations

import hashlib
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.benchmark.random_checkpoint import Stack, write_checkpoint

__all__ = ["CheckpointResult", "measure_checkpoint"]

_ROOT = Path(__file__).resolve().parents[2]
_BLOCK = 1 << 24
_START = 2.0
"""Seconds before a process writes anything."""


@dataclass(frozen=True)
class CheckpointResult:
    """Bytes and seconds. rss: the most that the process held, files mapped or not; copying: cp and sync.

    kills: how often it was killed; same: the bytes are those of an undisturbed run; full: what a full disk
    left and was told.
    """

    name: str
    weights: int
    largest_group: int
    rss: int
    copying: list[float]
    fusing: list[float]
    kills: int
    same: bool
    full: dict[str, Any] = field(default_factory=dict)

    @property
    def allowed(self) -> int:
        """The largest group plus 500 MB."""
        return self.largest_group + 500_000_000

    @property
    def ratio(self) -> float:
        """Times as long as copying: the medians of runs taken in turn."""
        return _median(self.fusing) / _median(self.copying)

    @property
    def holds(self) -> bool:
        """Whether memory, bytes and the old state are as they must be."""
        return self.rss <= self.allowed and self.same and bool(self.full.get("clean"))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self) | {"allowed": self.allowed, "ratio": round(self.ratio, 3)}


def measure_checkpoint(
    name: str, stack: Stack, *, folder: Path | None, kills: int, rounds: int, shard_size: int
) -> CheckpointResult:
    """Make, copy, fuse, kill and compare in `folder`; everything that was made is removed again.

    Raises:
        RuntimeError: Fusing failed.
    """
    with tempfile.TemporaryDirectory(dir=folder) as given:
        place = Path(given)
        source, out = place / "source", place / "out"
        weights = write_checkpoint(stack, source, shard_size)
        subprocess.run(["sync", *source.iterdir()], check=True)
        copying, fusing, most = [], [], 0
        for _ in range(rounds):
            copying.append(_copy(source, place / "copy"))
            shutil.rmtree(out, ignore_errors=True)
            seconds, rss = _fuse(source, out, shard_size)
            fusing, most = [*fusing, seconds], max(most, rss)
        full = _fill_disk(source, place / "full", shard_size)
        killed = _kill(source, place / "killed", shard_size, kills, _median(fusing))
        same = _digests(out) == _digests(place / "killed")
    return CheckpointResult(name, weights, stack.largest_group, most, copying, fusing, killed, same, full)


def _words(source: Path, out: Path, shard_size: int) -> list[str]:
    words = ["-m", "fxfuse.cli", "checkpoint", source, out, "--auto", "--shard-size", shard_size]
    return [sys.executable, *map(str, words)]


def _copy(source: Path, target: Path) -> float:
    """Seconds that cp and sync take for the folder."""
    started = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    subprocess.run(["sync", *target.iterdir()], check=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def _fuse(source: Path, out: Path, shard_size: int) -> tuple[float, int]:
    """Seconds, and the most memory as GNU time tells it."""
    started = time.perf_counter()
    words = ["/usr/bin/time", "-v", *_words(source, out, shard_size)]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=_ROOT)
    seconds = time.perf_counter() - started
    if ran.returncode:
        raise RuntimeError(f"fusing failed:\n{ran.stderr}")
    found = re.findall(r"Maximum resident set size \(kbytes\): (\d+)", ran.stderr)
    return seconds, int(found[0]) * 1024


def _kill(source: Path, out: Path, shard_size: int, kills: int, seconds: float) -> int:
    """SIGKILL at random moments, then a run to the end; returns how many kills there were."""
    chance, done = random.Random(0), 0
    while not out.exists():
        process = subprocess.Popen(_words(source, out, shard_size), stdout=subprocess.DEVNULL, cwd=_ROOT)
        wait = _START + chance.uniform(0, 1.5 * max(0.0, seconds - _START) / max(1, kills))
        try:
            code = process.wait(wait if done < kills else None)
            if code:
                raise RuntimeError(f"a run that was begun again failed with code {code}")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
    return done


def _fill_disk(source: Path, out: Path, shard_size: int) -> dict[str, Any]:
    """A run that may write no file larger than half of one: what it says and leaves."""
    before = sorted(out.parent.iterdir())
    limit = max(each.stat().st_size for each in source.iterdir()) // 2

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ran = subprocess.run(
        _words(source, out, shard_size), capture_output=True, text=True, cwd=_ROOT, preexec_fn=limited
    )
    told = ran.stderr.strip().replace(str(out.parent), "FOLDER")
    clean = ran.returncode == 1 and sorted(out.parent.iterdir()) == before and "No space left" in told
    return {
        "clean": clean,
        "code": ran.returncode,
        "told": re.sub(r"mounted at \S+", "mounted at DISK", told),
    }


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below."""
    found = {}
    for each in folder.rglob("*"):
        if each.is_file():
            digest = hashlib.sha256()
            with each.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
            found[each.relative_to(folder).as_posix()] = digest.hexdigest()
    return found


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
