"""Write a checkpoint tensor by tensor: a kill at any moment costs little, and no failure leaves traces.

    source/*.safetensors --spans--> .OUT.fxfuse-partial/model-00001-of-00007.safetensors --rename--> OUT/
                         --bands-->

Memory is that of some bands, whatever the model's size. The journal says how far the shards are on the disk;
a run that finds one goes on from there, and its bytes are those of a run that was never killed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from fxfuse._version import __version__
from fxfuse.checkpoints.destination import Destination
from fxfuse.checkpoints.filling import copy_files, fill_shards, write_texts
from fxfuse.checkpoints.journal import Journal
from fxfuse.checkpoints.pieces import check
from fxfuse.checkpoints.shards import Shard, index_of
from fxfuse.checkpoints.sidefiles import SideFile
from fxfuse.checkpoints.tensors import INDEX, Tensors
from fxfuse.disks import check_space, explain_write, sync
from fxfuse.errors import FxfuseError
from fxfuse.progress import Progress, silent

__all__ = ["Content", "Judge", "bytes_below", "write"]

Judge: TypeAlias = Callable[[Path], None]


@dataclass(frozen=True)
class Content:
    """What a folder will hold: shards made from `tensors`, texts, and files that are copied.

    arguments: what the user asked for, held against what a killed run was asked for.
    """

    tensors: Tensors
    shards: Sequence[Shard]
    texts: Mapping[str, str]
    side: Sequence[SideFile] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of everything."""
        texts = sum(len(each.encode()) for each in self.all_texts.values())
        return sum(each.nbytes for each in self.shards) + sum(each.nbytes for each in self.side) + texts

    @property
    def all_texts(self) -> Mapping[str, str]:
        """The texts, and at last the index where there is one."""
        index = index_of(self.shards)
        return self.texts if index is None else {**self.texts, INDEX: index}


def write(
    content: Content,
    out: Path,
    *,
    resume: bool = True,
    force: bool = False,
    judge: Judge = lambda _: None,
    progress: Progress = silent,
) -> bool:
    """Write a checkpoint's folder; returns whether it went on with what a killed run had left.

    `judge` is given the folder when all is in it, and raises where it must not come into its place.

    Raises:
        InputError: `out` cannot be written to or is not empty, or another run is at it or left something.
        FxfuseError: The disk is full, or the source changed meanwhile. What was written is removed then.
    """
    key = _key(content)
    place = Destination(out, content.tensors.folder, force=force)
    for each in (made for shard in content.shards for made in shard.tensors):
        check(each, content.tensors)
    if not (resume and place.renamed):
        place.check_free()
        check_space(place.target.parent, content.nbytes - bytes_below(place.content))
    journal = _begin(place, key, content.nbytes, restart=not resume)
    try:
        return _finish(content, place, journal, key, judge, progress)
    finally:
        journal.close()


def _begin(place: Destination, key: Mapping[str, Any], needed: int, *, restart: bool) -> Journal:
    try:
        return Journal(place.journal, key, restart=restart)
    except OSError as error:
        told = explain_write(error, place.target.parent, None, needed)
        if told is None:
            raise
        raise told from error


def _finish(
    content: Content,
    place: Destination,
    journal: Journal,
    key: Mapping[str, Any],
    judge: Judge,
    progress: Progress,
) -> bool:
    """Do what the journal does not tell of."""
    if journal.ended and place.renamed:
        place.clean_up()
        return True
    place.check_free()
    try:
        if not journal.resumed:
            place.clear()
        _fill(content, place.content, journal, progress)
        if _sources(content.tensors) != key["source"]:
            raise FxfuseError(f"{content.tensors.folder} was changed while it was read: start again.")
        judge(place.content)
        journal.end()
        place.commit()
    except Exception as error:
        told = explain_write(error, place.target.parent, place.content, content.nbytes)
        place.discard()
        if told is None:
            raise
        raise told from error
    return journal.resumed


def _fill(content: Content, folder: Path, journal: Journal, progress: Progress) -> None:
    folder.mkdir(exist_ok=True)
    copy_files(content.side, folder)  # first, since one that cannot be read is told at once then
    fill_shards(content.shards, content.tensors, folder, journal, progress)
    write_texts(content.all_texts, folder)
    for each in {folder / Path(shard.file).parent for shard in content.shards}:
        sync(each)


def _key(content: Content) -> dict[str, Any]:
    """What tells a run apart from others; as JSON gives it back."""
    written = hashlib.sha256()
    for shard in content.shards:
        written.update(shard.header)
        written.update(repr(shard.tensors).encode())
    for text in content.texts.values():
        written.update(text.encode())
    key = {
        "fxfuse": __version__,
        "source": _sources(content.tensors),
        "arguments": dict(content.arguments),
        "written": written.hexdigest(),
    }
    return dict(json.loads(json.dumps(key)))


def _sources(tensors: Tensors) -> dict[str, list[Any]]:
    """Size, time of change and digest of the header of every file of the source."""
    ends: dict[Path, int] = {}
    for each in tensors.values():
        ends[each.file] = min(each.start, ends.get(each.file, each.start))
    found = {}
    for file in tensors.files:
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
            digest = hashlib.sha256(opened.read(ends.get(file, 8))).hexdigest()
        found[tensors.path_of(file)] = [status.st_size, status.st_mtime_ns, digest]
    return found


def bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder and below; 0 where there is no folder."""
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
