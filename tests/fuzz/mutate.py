"""Make the mutant that a name stands for."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import onnx

from tests.fuzz.models import MODEL_MUTATIONS
from tests.fuzz.nodes import NODE_MUTATIONS
from tests.fuzz.seeds import write_seed
from tests.fuzz.tensors import TENSOR_MUTATIONS
from tests.fuzz.wire import mutate_bytes

__all__ = ["KINDS", "make_mutant"]

_TABLES = {"nodes": NODE_MUTATIONS, "tensors": TENSOR_MUTATIONS, "model": MODEL_MUTATIONS}
_TABLES["mixed"] = [each for table in list(_TABLES.values()) for each in table]
KINDS = ("bytes", *_TABLES)


def make_mutant(name: str, seeds: Path, folder: Path) -> tuple[Path, list[str]]:
    """Write mutant "seed/kind/number" into `folder` (emptied first); its file, and the mutations applied.

    Besides `KINDS` there is "none", which leaves the seed as it is.
    """
    seed, kind, number = name.split("/")
    source = write_seed(seed, seeds)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source.parent, folder)
    rng, path = Random(name), folder / source.name
    if kind == "none":
        return path, []
    if kind == "bytes":
        file = rng.choice(sorted(folder.iterdir())) if rng.random() < 0.2 else path
        file.write_bytes(mutate_bytes(file.read_bytes(), rng))
        return path, [f"bytes of {file.name}"]
    model = onnx.load(path, load_external_data=False)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutation = rng.choice(_TABLES[kind])
        try:
            mutation(model, rng)
        except (IndexError, ValueError, TypeError):  # an earlier mutation left nothing to work on
            continue
        done.append(mutation.__name__)
    path.write_bytes(_with_odd_names(model.SerializeToString(), rng))
    return path, done


def _with_odd_names(data: bytes, rng: Random) -> bytes:
    """At times, a name that is no UTF-8, which protobuf itself would not let one write."""
    if rng.random() > 0.02:
        return data
    word = rng.choice((b"layers", b"MatMul", b"input_ids", b"x1"))
    return data.replace(word, b"\xff" * len(word))
