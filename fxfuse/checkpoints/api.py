"""Fuse a checkpoint of any size on disk, tensor by tensor, without a machine that could hold it.

open -> (leave out attention) -> choose groups -> (recover) -> lay out -> recipes -> write -> verify -> rename
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fxfuse.checkpoints.contents import content_of, judge
from fxfuse.checkpoints.corrections import corrected_layers
from fxfuse.checkpoints.destination import Destination
from fxfuse.checkpoints.grouping import choose_groups
from fxfuse.checkpoints.layout import lay_out
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.plans import plan_notes
from fxfuse.checkpoints.recipes import output_tensors
from fxfuse.checkpoints.records import Checkpoint, Group, Layout
from fxfuse.checkpoints.report import CheckpointReport, loss_words, padding, sizes
from fxfuse.checkpoints.shards import Shard, cut
from fxfuse.checkpoints.sidefiles import side_files
from fxfuse.checkpoints.without import leave_out
from fxfuse.checkpoints.writing import bytes_below, write
from fxfuse.disks import check_space
from fxfuse.errors import InputError
from fxfuse.planning.files import AnyPlan, read_plan
from fxfuse.progress import Progress, silent

if TYPE_CHECKING:
    from fxfuse.planning.records import Plan
    from fxfuse.recovery.using import Recovery
    from fxfuse.removal.which import Which
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
    remove: Which | None = None,
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
        remove: Attentions that are left out before, in any form that `fxfuse.remove_attention` takes: layers
            such as "5-10,12", a `Choice`, or the configuration of another tool.
        dialect: "nemotron-nas", "per_layer_config" or "anymodel"; the source's own by default.
        shard_size: Most bytes of tensors in a file that holds several.
        dry_run: Write nothing; the report says what would be written. An `out` is checked as for writing.
        resume: Go on with what a killed run left; False throws it away.
        force: Replace a checkpoint that `out` holds; anything else that lies there is never replaced.
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
        raise InputError("Nothing says where to write: give out, or dry_run=True.")
    progress("reading headers")
    checkpoint = open_checkpoint(Path(folder))
    checkpoint = checkpoint if remove is None else leave_out(checkpoint, remove)
    plan = None if plan is None else read_plan(plan)
    recovery = _recovery(recover, calibration)
    found = choose_groups(checkpoint, groups, plan, auto=auto, max_group=max_group)
    layout = lay_out(checkpoint, found, dialect)
    shards = cut(output_tensors(checkpoint, layout), shard_size)
    kept = None
    if recovery is not None and out is not None and not dry_run:
        place, needed = Destination(Path(out), checkpoint.folder, force=force), sum(sizes(shards).values())
        kept = _recovered(checkpoint, found, recovery, place, needed, resume, provider, progress)
    with contextlib.nullcontext() if kept is None else kept:
        if kept is not None:
            checkpoint, layout = kept.checkpoint, lay_out(kept.checkpoint, found, dialect)
            shards = cut(output_tensors(checkpoint, layout), shard_size)
        report = _report(checkpoint, layout, shards, plan, None if kept is None else kept.figures)
        if dry_run and out is not None:
            _check_place(checkpoint, Path(out), sum(report.files.values()), force)
        elif out is not None:
            content = content_of(checkpoint, layout, shards, shard_size, plan, report.recovery)
            report.resumed = write(
                content, Path(out), resume=resume, force=force, judge=judge, progress=progress
            )
            report.output = os.fspath(out)
    report.seconds = time.monotonic() - started
    return report


def _check_place(checkpoint: Checkpoint, out: Path, needed: int, force: bool) -> None:
    """What writing would refuse at its start."""
    place = Destination(out, checkpoint.folder, force=force)
    place.check_free()
    check_space(place.target.parent, needed)


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
    needed: int,
    resume: bool,
    provider: Provider,
    progress: Progress,
) -> KeptRecovery:
    """The checkpoint with corrected weights, once it is known that it can be written.

    needed: bytes that the output takes, beside which the corrected weights have to find room.
    """
    from fxfuse.streaming.kept import kept_recovery

    if not (resume and place.renamed):
        place.check_free()
    return kept_recovery(
        checkpoint, groups, recovery.calibration, place.target, recovery.options,
        beside=needed - bytes_below(place.content), resume=resume, provider=provider, progress=progress,
    )  # fmt: skip


def _report(
    checkpoint: Checkpoint,
    layout: Layout,
    shards: list[Shard],
    plan: Plan | None,
    recovery: Mapping[str, Any] | None,
) -> CheckpointReport:
    corrected = corrected_layers(recovery, checkpoint.family)
    return CheckpointReport(
        source=os.fspath(checkpoint.folder),
        dialect=layout.dialect,
        layers=(len(checkpoint.layers), len(layout.layers)),
        removed=[] if checkpoint.removed is None else list(checkpoint.removed.layers),
        groups=layout.groups,
        folded=[each.sources for each in layout.layers if not each.keeps_gain],
        padded=padding(layout),
        weights=(checkpoint.tensors.nbytes, sum(each.weights for each in shards)),
        files=sizes(shards),
        left_behind=side_files(checkpoint.folder, checkpoint.tensors.files)[1],
        corrected=[group for group in layout.groups if group[0] in corrected],
        loss=loss_words(plan) if recovery is None else "",
        notes=[] if plan is None else plan_notes(plan, checkpoint.folder),
        recovery=recovery,
    )
