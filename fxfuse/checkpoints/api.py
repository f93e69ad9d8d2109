"""Fuse a checkpoint of any size on disk, tensor by tensor, without a machine that could hold it.

open -> choose groups -> (recover) -> lay out -> recipes -> write beside -> verify -> rename
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fxfuse.checkpoints.card import card_of
from fxfuse.checkpoints.destination import Destination
from fxfuse.checkpoints.dialects import config_of, extra_files
from fxfuse.checkpoints.grouping import choose_groups
from fxfuse.checkpoints.layout import lay_out
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.recipes import output_tensors
from fxfuse.checkpoints.record import as_text, record_of
from fxfuse.checkpoints.records import Checkpoint, Group, Layout
from fxfuse.checkpoints.report import CheckpointReport, padding, sizes
from fxfuse.checkpoints.shards import Shard, cut
from fxfuse.checkpoints.sidefiles import CARD, CONFIG, RECORD, SideFile, side_files
from fxfuse.checkpoints.verifying import verify_checkpoint
from fxfuse.checkpoints.writing import Content, write
from fxfuse.errors import InputError, VerificationError
from fxfuse.planning.files import AnyPlan, read_plan
from fxfuse.planning.records import Plan
from fxfuse.progress import Progress, silent

if TYPE_CHECKING:
    from fxfuse.recovery.using import Recovery
    from fxfuse.sessions import Provider
    from fxfuse.streaming.kept import KeptRecovery

__all__ = ["fuse_checkpoint"]

AnyPath: TypeAlias = "str | os.PathLike[str]"


def fuse_checkpoint(
    folder: AnyPath,
    out: AnyPath | None = None,
    *,
    groups: str | None = None,
    plan: AnyPlan | None = None,
    auto: bool = False,
    max_group: int | None = None,
    dialect: str | None = None,
    shard_size: int = 5_000_000_000,
    dry_run: bool = False,
    resume: bool = True,
    force: bool = False,
    recover: Any = None,
    calibration: Any = None,
    provider: Provider = "auto",
    progress: Progress = silent,
) -> CheckpointReport:
    """Write the fused checkpoint of a folder of safetensors files.

    A run that was killed is gone on with by the same call: `out` appears at the end, with the bytes that an
    undisturbed run writes.

    Args:
        folder: A Hugging Face checkpoint: config.json, safetensors files, and the index of several.
        out: The folder to make; with `dry_run` it may be left out.
        groups: First and last layers of each group, such as "42-50,53-69"; or one of the next two.
        plan: A plan of this model, in any form of it.
        auto: Fuse every run of FFNs with no attention between.
        max_group: Most FFNs in a group of `auto`.
        dialect: "nemotron-nas", "per_layer_config" or "anymodel"; the source's own by default.
        shard_size: Most bytes of tensors in a file that holds several.
        dry_run: Write nothing; the report says what would be written.
        resume: Go on with what a killed run left; False throws it away.
        force: Replace `out` if it is not empty.
        recover: "fit", "distill" or `RecoveryOptions`: correct the weights of the groups on `calibration`,
            block by block from disk. A dry run does not: shapes stay as they are.
        calibration: Token ids to recover on, as `fxfuse.Calibration.of` takes them.
        provider: Where recovery computes: "cuda", "cpu", or "auto" for the first of them that is there.
        progress: Called with a short text at every step.

    Raises:
        InputError: Something that was given cannot be used. Known before anything is written.
        FxfuseError: The disk is full, or what was written is not what readers load; nothing is left then.
    """
    started = time.monotonic()
    if shard_size < 1:
        raise InputError(f"shard_size is {shard_size}: give a number of bytes, such as 5 GB.")
    if out is None and not dry_run:
        raise InputError("Nothing says where to write: give out, or dry_run=True (--dry-run).")
    progress("reading headers")
    checkpoint = open_checkpoint(Path(folder))
    plan = None if plan is None else read_plan(plan)
    recovery = _recovery(recover, calibration)
    found = choose_groups(checkpoint, groups, plan, auto=auto, max_group=max_group)
    layout = lay_out(checkpoint, found, dialect)
    kept = None
    if recovery is not None and out is not None and not dry_run:
        place = Destination(Path(out), checkpoint.folder, force=force)
        kept = _recovered(checkpoint, found, recovery, place, resume, provider, progress)
        checkpoint, layout = kept.checkpoint, lay_out(kept.checkpoint, found, dialect)
    shards = cut(output_tensors(checkpoint, layout), shard_size)
    report = _report(checkpoint, layout, shards)
    report.recovery = None if kept is None else kept.figures
    if not dry_run and out is not None:
        content = _content(checkpoint, layout, shards, plan, shard_size, report.recovery)
        with contextlib.nullcontext() if kept is None else kept:
            report.resumed = write(
                content, Path(out), resume=resume, force=force, judge=_judge, progress=progress
            )
        report.output = os.fspath(out)
    report.seconds = time.monotonic() - started
    return report


def _recovery(recover: Any, calibration: Any) -> Recovery | None:
    """The recovery that is asked for; without one, what it needs is not loaded, which takes memory."""
    if recover is None and calibration is None:
        return None
    from fxfuse.recovery.using import recovery_for

    return recovery_for(recover, calibration)


def _recovered(
    checkpoint: Checkpoint,
    groups: list[Group],
    recovery: Recovery,
    place: Destination,
    resume: bool,
    provider: Provider,
    progress: Progress,
) -> KeptRecovery:
    """The checkpoint with corrected weights, once it is known that it can be written."""
    from fxfuse.streaming.kept import kept_recovery

    if not (resume and place.renamed):
        place.check_free()
    return kept_recovery(
        checkpoint, groups, recovery.calibration, place.target, recovery.options, resume=resume,
        provider=provider, progress=progress,
    )  # fmt: skip


def _report(checkpoint: Checkpoint, layout: Layout, shards: list[Shard]) -> CheckpointReport:
    return CheckpointReport(
        source=os.fspath(checkpoint.folder),
        dialect=layout.dialect,
        layers=(len(checkpoint.layers), len(layout.layers)),
        groups=layout.groups,
        folded=[each.sources for each in layout.layers if not each.keeps_gain],
        padded=padding(layout),
        weights=(checkpoint.tensors.nbytes, sum(each.weights for each in shards)),
        files=sizes(shards),
        left_behind=side_files(checkpoint.folder, checkpoint.tensors.files)[1],
    )


def _content(
    checkpoint: Checkpoint,
    layout: Layout,
    shards: list[Shard],
    plan: Plan | None,
    shard_size: int,
    recovery: Mapping[str, Any] | None,
) -> Content:
    made = [each for shard in shards for each in shard.tensors]
    texts = {
        **extra_files(layout),
        CONFIG: as_text(config_of(checkpoint, layout)),
        RECORD: as_text(record_of(checkpoint, layout, made, plan, recovery)),
        CARD: card_of(checkpoint, layout, plan, recovery),
    }
    arguments = {"groups": layout.groups, "dialect": layout.dialect, "shard_size": shard_size}
    side, _ = side_files(checkpoint.folder, checkpoint.tensors.files)
    return Content(checkpoint.tensors, shards, texts, _without(side, texts), arguments)


def _without(side: list[SideFile], texts: dict[str, str]) -> list[SideFile]:
    """The files that go along, but for those that are written anew."""
    return [each for each in side if each.name not in texts]


def _judge(folder: Path) -> None:
    """Refuse what our own loader would not load."""
    for problem in verify_checkpoint(folder).problems:
        raise VerificationError(f"The fused checkpoint would not load, so nothing was written: {problem}")
