"""Which tensors go into which file, and what stands at the head of each.

    model-00001-of-00007.safetensors   8 bytes: the header's length | the header as JSON | the tensors' bytes
    model.safetensors.index.json       which file holds which tensor, where there are several

Where every byte will lie is known before the first is written.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from fxfuse.checkpoints.records import OutputTensor
from fxfuse.checkpoints.tensors import DTYPES, SINGLE, size_of

__all__ = ["Shard", "cut", "index_of"]


@dataclass(frozen=True)
class Shard:
    """A file of the output, by its path there, and its tensors in the order of their bytes."""

    file: str
    tensors: tuple[OutputTensor, ...]

    @cached_property
    def header(self) -> bytes:
        """Everything before the first tensor's bytes, a multiple of 8 bytes long."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        place = 0
        for each in self.tensors:
            size = size_of(each.dtype, each.shape)
            entries[each.name] = {
                "dtype": each.dtype, "shape": list(each.shape), "data_offsets": [place, place + size],
            }  # fmt: skip
            place += size
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    @property
    def weights(self) -> int:
        """Bytes of the tensors."""
        return sum(size_of(each.dtype, each.shape) for each in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self.header) + self.weights


def cut(tensors: Iterable[OutputTensor], shard_size: int) -> list[Shard]:
    """Files of at most `shard_size` bytes of tensors, where no tensor is larger than that.

    Tensors that name their file go there, however large it becomes.
    """
    placed: dict[str, list[OutputTensor]] = {}
    free: list[list[OutputTensor]] = []
    room = 0
    for each in tensors:
        size = size_of(each.dtype, each.shape)
        if each.file:
            placed.setdefault(each.file, []).append(each)
            continue
        if not free or size > room:
            free.append([])
            room = shard_size
        free[-1].append(each)
        room -= size
    names = _names(len(free), alone=not placed)
    files = [*zip(names, free, strict=True), *placed.items()]
    return [Shard(name, _aligned(held)) for name, held in files]


def index_of(shards: Sequence[Shard]) -> str | None:
    """The text of the index; None where readers look for one file, which needs none."""
    if len(shards) == 1 and shards[0].file == SINGLE:
        return None
    places = {each.name: shard.file for shard in shards for each in shard.tensors}
    found = {
        "metadata": {"total_size": sum(shard.weights for shard in shards)},
        "weight_map": dict(sorted(places.items())),
    }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _names(count: int, *, alone: bool) -> list[str]:
    if count == 1 and alone:
        return [SINGLE]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _aligned(tensors: Sequence[OutputTensor]) -> tuple[OutputTensor, ...]:
    """The widest types first, so that each tensor lies where its type may be read in place."""
    return tuple(sorted(tensors, key=lambda each: -DTYPES[each.dtype].itemsize))
