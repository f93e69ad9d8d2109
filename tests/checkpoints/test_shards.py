"""How tensors are divided among files, and what stands before them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from fxfuse.checkpoints.records import OutputTensor, Same
from fxfuse.checkpoints.shards import cut, index_of


def out(name: str, count: int, dtype: str = "F32", file: str = "") -> OutputTensor:
    return OutputTensor(name, dtype, (count,), Same(0.0), file)


def names(shards: list[object]) -> list[list[str]]:
    return [[each.name for each in shard.tensors] for shard in shards]  # type: ignore[attr-defined]


def test_one_file_needs_no_index() -> None:
    shards = cut([out("a", 2), out("b", 3)], 1000)
    assert [each.file for each in shards] == ["model.safetensors"]
    assert index_of(shards) is None


def test_files_hold_at_most_the_size_but_for_one_tensor_that_is_larger() -> None:
    shards = cut([out("a", 2), out("b", 2), out("c", 9), out("d", 1), out("e", 1)], 16)
    assert names(shards) == [["a", "b"], ["c"], ["d", "e"]]
    assert [each.file for each in shards] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]


def test_tensors_that_name_their_file_go_there() -> None:
    shards = cut([out("a", 2), out("b", 2, file="sub/x.safetensors"), out("c", 2)], 1000)
    assert [each.file for each in shards] == ["model-00001-of-00001.safetensors", "sub/x.safetensors"]
    found = json.loads(index_of(shards) or "")
    assert found["weight_map"] == {
        "a": "model-00001-of-00001.safetensors", "b": "sub/x.safetensors",
        "c": "model-00001-of-00001.safetensors",
    }  # fmt: skip
    assert found["metadata"]["total_size"] == 24


def test_one_named_file_that_is_not_the_usual_one_has_an_index() -> None:
    assert index_of(cut([out("a", 2, file="sub/x.safetensors")], 1000)) is not None


def test_wide_types_come_first_so_that_all_are_aligned() -> None:
    (shard,) = cut([out("bytes", 3, "U8"), out("half", 3, "BF16"), out("full", 3, "F32")], 1000)
    assert [each.name for each in shard.tensors] == ["full", "half", "bytes"]
    assert len(shard.header) % 8 == 0


def test_the_library_reads_it(tmp_path: Path) -> None:
    (shard,) = cut([out("ä", 3), out("b", 2, "BF16")], 1000)
    path = tmp_path / "model.safetensors"
    path.write_bytes(shard.header + bytes(shard.weights))
    assert shard.nbytes == path.stat().st_size
    found = load_file(path)
    assert torch.equal(found["ä"], torch.zeros(3))
    assert found["b"].dtype == torch.bfloat16
