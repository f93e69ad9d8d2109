"""Put a checkpoint's files into a folder, going on where the journal says that another run was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from fxfuse.checkpoints.copying import copy_bytes, write_at
from fxfuse.checkpoints.journal import Journal
from fxfuse.checkpoints.pieces import Piece, Span, pieces
from fxfuse.checkpoints.shards import Shard
from fxfuse.checkpoints.sidefiles import SideFile
from fxfuse.checkpoints.syncing import Syncing
from fxfuse.checkpoints.tensors import Tensors, bytes_of
from fxfuse.disks import size_words, sync
from fxfuse.progress import Amount, Progress

__all__ = ["copy_files", "fill_shards", "write_texts"]


def fill_shards(
    shards: Sequence[Shard], tensors: Tensors, folder: Path, journal: Journal, progress: Progress
) -> None:
    """Write what is missing of every shard.

    Raises:
        InputError: The source was cut short meanwhile.
        OSError: The disk refuses.
    """
    starts = [_start(shard, folder, journal) for shard in shards]
    total = sum(shard.nbytes for shard in shards)
    amount = Amount("writing", total, progress, done=sum(starts), word=size_words)
    with _one_thread():
        for shard, start in zip(shards, starts, strict=True):
            if start < shard.nbytes:
                _fill(shard, start, tensors, folder / shard.file, journal, amount)


def copy_files(files: Sequence[SideFile], folder: Path) -> None:
    """Copy the files that go along, with their permissions."""
    for each in files:
        target = folder / each.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with each.source.open("rb") as source, target.open("wb") as file:
            status = os.fstat(source.fileno())
            copy_bytes(source.fileno(), 0, file.fileno(), 0, status.st_size)
            os.fchmod(file.fileno(), status.st_mode & 0o777 | 0o200)
        sync(target)


def write_texts(texts: Mapping[str, str], folder: Path) -> None:
    """Write texts under their names, in order."""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        sync(folder / name)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Bands are small: dividing one among threads takes longer than making it, where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _start(shard: Shard, folder: Path, journal: Journal) -> int:
    """From which byte on a shard is to be written; what the journal tells of has to be there."""
    known = min(journal.position(shard.file), shard.nbytes)
    path = folder / shard.file
    return known if path.is_file() and path.stat().st_size >= known else 0


def _fill(shard: Shard, start: int, tensors: Tensors, path: Path, journal: Journal, amount: Amount) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.ftruncate(target, start)
        with Syncing(target, lambda position: journal.note(shard.file, position), start) as syncing:
            for place, piece in _placed(shard, tensors):
                if place < start:
                    continue
                _write(piece, target, place)
                syncing.reach(place + _size(piece))
                amount.add(_size(piece))
            syncing.wait()
        os.fsync(target)
        journal.note(shard.file, shard.nbytes)
    finally:
        os.close(target)


def _placed(shard: Shard, tensors: Tensors) -> Iterator[tuple[int, Piece | bytes]]:
    """The header and the tensors' pieces, each with where it begins."""
    yield 0, shard.header
    place = len(shard.header)
    for made in shard.tensors:
        for piece in pieces(made, tensors):
            yield place, piece
            place += piece.nbytes


def _write(piece: Piece | bytes, target: int, place: int) -> None:
    if isinstance(piece, bytes):
        write_at(target, place, memoryview(piece))
    elif isinstance(piece, Span):
        with piece.file.open("rb", buffering=0) as source:
            copy_bytes(source.fileno(), piece.start, target, place, piece.nbytes)
    else:
        write_at(target, place, bytes_of(piece.make()))


def _size(piece: Piece | bytes) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.nbytes
