"""Fuzz for some minutes, or look at one mutant again: python -m tests.fuzz --minutes 10."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.mutate import KINDS
from tests.fuzz.seeds import SEEDS, write_seed
from tests.fuzz.worker import Worker

CHECKS = {"reading": 1, "fusing": 1, "exact": 2}


def main() -> None:
    """Count outcomes and append what was found to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="the first mutant's number")
    parser.add_argument("--seeds", nargs="*", default=list(SEEDS))
    parser.add_argument("--checks", nargs="*", default=list(CHECKS))
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fxfuse-fuzz-seeds")
    parser.add_argument("--log", type=Path, default=Path("fuzz.jsonl"))
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        write_seed(seed, arguments.folder)
    counts: Counter[str] = Counter()
    lock, deadline = threading.Lock(), time.monotonic() + 60 * arguments.minutes

    def work(job: int) -> None:
        worker, number = Worker(arguments.folder), arguments.start + job
        weights = [CHECKS[each] for each in arguments.checks]
        while time.monotonic() < deadline:
            rng = random.Random(number)
            what = rng.choices(arguments.checks, weights)[0]
            kinds = [each for each in arguments.kinds if each != "bytes" or what != "exact"]
            name = f"{rng.choice(arguments.seeds)}/{rng.choice(kinds)}/{number}"
            outcome = worker.check(what, name)
            with lock:
                counts[f"{what} {outcome.kind}"] += 1
                if outcome.kind in ("bug", "unverified"):
                    with arguments.log.open("a") as log:
                        log.write(
                            json.dumps(
                                {"what": what, "name": name, "kind": outcome.kind, "detail": outcome.detail}
                            )
                            + "\n"
                        )
            number += arguments.jobs
        worker.close()

    threads = [threading.Thread(target=work, args=(job,)) for job in range(arguments.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, count in sorted(counts.items()):
        print(f"{count:7d}  {name}")


if __name__ == "__main__":
    main()
