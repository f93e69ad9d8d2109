"""Fixed mutants: their number is the bound, never a clock. `python -m tests.fuzz` goes on from here."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.mutate import KINDS
from tests.fuzz.seeds import FAST, write_seed
from tests.fuzz.wire import mutate_bytes, places
from tests.fuzz.worker import Worker
from tests.small_onnx import Small

COUNTS = {"reading": 150, "fusing": 50, "exact": 70}
RUN = [name for name in FAST if name != "small_bfloat16"]
"""Those that ONNX Runtime itself runs on a CPU, so that numbers can be compared."""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    for name in FAST:
        write_seed(name, folder)
    return folder


@pytest.fixture(scope="module")
def worker(seeds: Path) -> Iterator[Worker]:
    started = Worker(seeds)
    yield started
    started.close()


def names(what: str) -> list[str]:
    """Every seed and kind in turn; bytes are not mutated where equal numbers are asked for."""
    kinds = [kind for kind in KINDS if kind != "bytes" or what != "exact"]
    rng = Random(what)
    seeds = RUN if what == "exact" else FAST
    return [f"{rng.choice(seeds)}/{rng.choice(kinds)}/{number}" for number in range(COUNTS[what])]


@pytest.mark.parametrize("what", COUNTS)
def test_mutants(worker: Worker, what: str) -> None:
    outcomes = {name: worker.check(what, name) for name in names(what)}
    bad = {name: each.detail for name, each in outcomes.items() if each.kind in ("bug", "unverified")}
    assert not bad
    kinds = Counter(each.kind for each in outcomes.values())
    assert kinds["fused"] > len(outcomes) / 10, "mutants that nothing is left of show nothing"


@pytest.mark.parametrize("seed", RUN)
def test_seeds_fuse_as_they_are(worker: Worker, seed: str) -> None:
    """The oracle's yes means something only where the seed itself passes."""
    for what in ("fusing", "exact"):
        assert worker.check(what, f"{seed}/none/0").kind == "fused"


def test_places_are_those_of_the_format() -> None:
    data = Small(layers=1).model().SerializeToString()
    found = places(data)
    assert 500 < len(found) < len(data) / 2
    assert max(found) < len(data)


def test_mutations_are_their_seeds() -> None:
    data = Small(layers=1).model().SerializeToString()
    assert mutate_bytes(data, Random(1)) == mutate_bytes(data, Random(1)) != data
