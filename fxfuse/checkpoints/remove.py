"""Write a checkpoint without some of its attentions, tensor by tensor: nothing is fused yet.

open -> leave out -> lay out -> recipes, all of them copies -> write beside -> verify -> rename
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TypeAlias

from fxfuse.checkpoints.contents import content_of, judge
from fxfuse.checkpoints.destination import Destination
from fxfuse.checkpoints.grouping import runs
from fxfuse.checkpoints.layout import lay_out
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.plans import block_names
from fxfuse.checkpoints.recipes import output_tensors
from fxfuse.checkpoints.records import Checkpoint
from fxfuse.checkpoints.shards import cut
from fxfuse.checkpoints.without import attentions, leave_out, removed_names
from fxfuse.checkpoints.writing import write
from fxfuse.errors import InputError
from fxfuse.progress import Progress, silent
from fxfuse.removal.records import Choice, Removal
from fxfuse.removal.which import Which

__all__ = ["check_removed_output", "default_removed_folder", "remove_attention_checkpoint"]

AnyPath: TypeAlias = "str | os.PathLike[str]"


def default_removed_folder(folder: AnyPath) -> Path:
    """FOLDER-less beside FOLDER."""
    path = Path(folder)
    return path.with_name(f"{path.resolve().name}-less")


def check_removed_output(folder: AnyPath, out: AnyPath | None, *, resume: bool, force: bool) -> None:
    """Whether a result can go to `out`, for callers with long work to do before there is one.

    Raises:
        InputError: It is not empty, or no place for a folder.
    """
    target = default_removed_folder(folder) if out is None else Path(out)
    place = Destination(target, Path(folder), force=force)
    if not (resume and place.renamed):
        place.check_free()


def remove_attention_checkpoint(
    folder: AnyPath,
    out: AnyPath | None,
    which: Which,
    *,
    dialect: str | None = None,
    shard_size: int = 5_000_000_000,
    resume: bool = True,
    force: bool = False,
    progress: Progress = silent,
) -> Removal:
    """Write the checkpoint of a folder without some of its attentions, norms before them included.

    A run that was killed is gone on with by the same call, as with `fuse_checkpoint`.

    Args:
        folder: A Hugging Face checkpoint: config.json, safetensors files, and the index of several.
        out: The folder to make; FOLDER-less beside it by default.
        which: Layers ("5-10,12" or numbers), layer paths, a `Choice`, or the configuration of another tool
            (LLM-Drop, nemotron-nas, transformers) as a dict or a path.
        dialect: "nemotron-nas", "per_layer_config" or "anymodel"; the source's own by default.
        shard_size: Most bytes of tensors in a file that holds several.
        resume: Go on with what a killed run left; False throws it away.
        force: Replace a checkpoint that `out` holds; anything else that lies there is never replaced.
        progress: Called with a short text at every step.

    Raises:
        InputError: Such an attention is not there, or something that was given cannot be used.
        FxfuseError: The disk is full, or what was written is not what readers load; nothing is left then.
    """
    started = time.perf_counter()
    if shard_size < 1:
        raise InputError(f"shard_size is {shard_size}: give a number of bytes, such as 5 GB.")
    target = default_removed_folder(folder) if out is None else Path(out)
    progress("reading headers")
    source = open_checkpoint(Path(folder))
    checkpoint = leave_out(source, which)
    layout = lay_out(checkpoint, [], dialect)
    shards = cut(output_tensors(checkpoint, layout), shard_size)
    report = _report(source, checkpoint)
    report.choice = which if isinstance(which, Choice) else None
    content = content_of(checkpoint, layout, shards, shard_size)
    write(content, target, resume=resume, force=force, judge=judge, progress=progress)
    report.bytes_after = sum(each.weights for each in shards)
    report.output = os.fspath(target)
    report.seconds = round(time.perf_counter() - started, 3)
    return report


def _report(source: Checkpoint, less: Checkpoint) -> Removal:
    return Removal(
        os.fspath(source.folder),
        removed=tuple(removed_names(less)),
        kept=tuple(each.name for each in attentions(less)),
        chains_before=_chains(source),
        chains=_chains(less),
        bytes_before=source.tensors.nbytes,
    )


def _chains(checkpoint: Checkpoint) -> list[tuple[str, ...]]:
    """The blocks' names of every run."""
    names = {layer.number: name for name, layer in block_names(checkpoint).items()}
    return [tuple(names[number] for number in run) for run in runs(checkpoint)]
