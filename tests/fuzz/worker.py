"""Processes of their own that look at mutants, so that a crash, a hang or an eaten memory is seen and told.

The parent writes one line, "check seed/kind/number", and reads one line of JSON back.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import IO

from tests.fuzz.oracle import Outcome

__all__ = ["Worker"]

SECONDS = 300
"""After which a mutant hangs; far above what any takes on a busy machine."""
MEMORY = 16 << 30


class Worker:
    """One process, started again after each one that it lost."""

    def __init__(self, seeds: Path) -> None:
        self.seeds = seeds
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        self._process: subprocess.Popen[str] | None = None

    def check(self, what: str, name: str) -> Outcome:
        """The outcome of one check ("reading", "fusing", "exact") of one mutant; a lost process is a bug."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        print(what, name, file=process.stdin, flush=True)
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        line = process.stdout.readline() if ready else ""
        if line:
            return Outcome(**json.loads(line))
        self._process = None
        if not ready:
            process.kill()
            process.wait()
            return Outcome("bug", f"took more than {SECONDS} seconds")
        return Outcome("bug", f"died with exit code {process.wait()}")

    def close(self) -> None:
        """End the process and remove what it wrote."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def _start(self) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "tests.fuzz.worker", str(self.seeds), self._folder.name]
        return subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def main() -> None:
    """Serve checks on stdin."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    seeds, folder = Path(sys.argv[1]), Path(sys.argv[2]) / "mutant"
    with os.fdopen(os.dup(1), "w") as answers, tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 1)
        for line in sys.stdin:
            answer = _answer(*line.split(), seeds, folder, printed)
            print(json.dumps(answer), file=answers, flush=True)


def _answer(what: str, name: str, seeds: Path, folder: Path, printed: IO[bytes]) -> dict[str, str]:
    """Make one mutant and check it; what is printed meanwhile is a bug."""
    from tests.fuzz.mutate import make_mutant
    from tests.fuzz.oracle import check_exact, check_fusing, check_reading

    path, done = make_mutant(name, seeds, folder)
    checks = {"reading": check_reading, "fusing": check_fusing}
    outcome = checks[what](path) if what in checks else check_exact(path, Random(name))
    sys.stdout.flush()
    if printed.tell():
        printed.seek(0)
        outcome = Outcome("bug", f"printed {printed.read()[:500]!r}")
        printed.seek(0)
        printed.truncate()
    return {"kind": outcome.kind, "detail": f"{outcome.detail} [{', '.join(done)}]"}


if __name__ == "__main__":
    main()
