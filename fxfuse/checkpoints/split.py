"""Give back the checkpoint that a fused one was made of: its layers, its tensors, its config, its files.

Tensors whose gain was kept are moved as they are; those a gain was folded into are divided by it, and equal
the source's to rounding. Blocks that recovery corrected come back corrected: nothing tells how they were.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fxfuse.checkpoints.corrections import corrected_layers, in_block
from fxfuse.checkpoints.families import family_of
from fxfuse.checkpoints.pieces import check
from fxfuse.checkpoints.record import as_text, read_record
from fxfuse.checkpoints.records import OutputTensor, Stacked
from fxfuse.checkpoints.report import SplitCheckpoint, sizes
from fxfuse.checkpoints.shards import cut
from fxfuse.checkpoints.sidefiles import CARD, CONFIG, OLD_CARD, RECORD, SideFile, side_files
from fxfuse.checkpoints.tensors import Tensors, file_within
from fxfuse.checkpoints.undoing import read_undo
from fxfuse.checkpoints.writing import Content, write
from fxfuse.errors import FxfuseError, InputError
from fxfuse.naming import layer_words
from fxfuse.progress import Progress, silent

__all__ = ["split_checkpoint"]

AnyPath: TypeAlias = "str | os.PathLike[str]"


def split_checkpoint(
    folder: AnyPath,
    out: AnyPath | None = None,
    *,
    resume: bool = True,
    force: bool = False,
    progress: Progress = silent,
) -> SplitCheckpoint:
    """Write the checkpoint that `folder` was fused from, in files of the same names.

    Where its weights were corrected, the blocks of those groups are the corrected ones.

    Args:
        folder: What `fuse_checkpoint` wrote.
        out: The folder to make; FOLDER-split beside it by default.
        resume: Go on with what a killed run left; False throws it away.
        force: Replace a checkpoint that `out` holds; anything else that lies there is never replaced.
        progress: Called with a short text at every step.

    Raises:
        InputError: The folder holds no record of a fusion or contradicts it, or `out` cannot be written.
        FxfuseError: The disk is full; nothing is left then.
    """
    started = time.monotonic()
    source = Path(folder)
    target = Path(out) if out is not None else source.with_name(f"{source.resolve().name}-split")
    progress("reading headers")
    tensors, record = Tensors(source), read_record(source)
    made, texts, layers, dropped, removed = _read(record or {}, tensors, source / RECORD)
    shards = cut(made, 1)
    corrected, others = _corrected(record or {}, made, source / RECORD)
    exact = sum(_is_exact(each, tensors) for each in others)
    report = SplitCheckpoint(
        os.fspath(source), layers, exact, len(others) - exact, dropped, removed, sizes(shards),
        os.fspath(target), corrected=corrected, corrected_tensors=len(made) - len(others),
    )  # fmt: skip
    content = Content(tensors, shards, texts, _side(source, tensors, RECORD in texts), {"split": True})
    report.resumed = write(content, target, resume=resume, force=force, progress=progress)
    report.seconds = time.monotonic() - started
    return report


def _read(
    record: Mapping[str, Any], tensors: Tensors, place: Path
) -> tuple[list[OutputTensor], dict[str, str], tuple[int, int], list[str], list[int]]:
    """What a record says: tensors, texts, layers now and before, what is not given back and left out."""
    try:
        removed = [int(each) for each in record.get("removed", {"layers": []})["layers"]]
        if record["undo"] is None:
            raise InputError(
                f"{place.parent} is not fused: the attention of {layer_words(removed)} was removed, and "
                "its weights are not kept, so take the checkpoint that it was made of."
            )
        source = record["source"]
        made = read_undo(record["undo"])
        for each in made:
            file_within(each.file, place)
            check(each, tensors)
        texts = {CONFIG: as_text(dict(source["config"]))}
        if source["record"] is not None:
            texts[RECORD] = as_text(dict(source["record"]))
        layers = (len(record["layers"]), int(source["num_hidden_layers"]))
        return made, texts, layers, list(map(str, record["undo"]["dropped"])), removed
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, FxfuseError):
        raise _damaged(place) from None


def _corrected(
    record: Mapping[str, Any], made: Sequence[OutputTensor], place: Path
) -> tuple[list[int], list[OutputTensor]]:
    """Layers whose blocks are corrected ones, and the tensors that are not theirs."""
    try:
        family = family_of(record["source"]["config"], str(place))
        layers = corrected_layers(record.get("recovery"), family)
    except (KeyError, TypeError, ValueError):
        raise _damaged(place) from None
    return layers, [each for each in made if not in_block(each.name, layers, family)]


def _damaged(place: Path) -> InputError:
    return InputError(f"{place} is damaged or belongs to other tensors: copy the checkpoint anew.")


def _is_exact(made: OutputTensor, tensors: Tensors) -> bool:
    """Whether a tensor is moved as it is."""
    if not isinstance(made.recipe, Stacked):
        return True
    parts = [part for run in made.recipe.runs for part in run]
    return all(
        part.gain is None and part.factor == 1.0 and tensors[part.source].dtype == made.dtype
        for part in parts
    )


def _side(folder: Path, tensors: Tensors, still_fused: bool) -> Sequence[SideFile]:
    """The files that go along; the source's card is the card again, once nothing is fused any more."""
    found = []
    for each in side_files(folder, tensors.files)[0]:
        if each.source.name == CARD and each.source.parent == folder:
            continue
        found.append(SideFile(each.source, CARD) if each.name == OLD_CARD and not still_fused else each)
    return found
