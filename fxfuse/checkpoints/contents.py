"""All that a written folder will hold, and the last look at it before it comes into its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxfuse.checkpoints.card import card_of
from fxfuse.checkpoints.dialects import config_of, extra_files
from fxfuse.checkpoints.record import as_text, record_of
from fxfuse.checkpoints.records import Checkpoint, Layout
from fxfuse.checkpoints.shards import Shard
from fxfuse.checkpoints.sidefiles import CARD, CONFIG, RECORD, SideFile, side_files
from fxfuse.checkpoints.verifying import verify_checkpoint
from fxfuse.checkpoints.writing import Content
from fxfuse.errors import VerificationError
from fxfuse.planning.records import Plan

__all__ = ["content_of", "judge"]


def content_of(
    checkpoint: Checkpoint,
    layout: Layout,
    shards: list[Shard],
    shard_size: int,
    plan: Plan | None = None,
    recovery: Mapping[str, Any] | None = None,
) -> Content:
    """Weights, config, record, card, and the source's files beside its weights."""
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


def judge(folder: Path) -> None:
    """Refuse what our own loader would not load.

    Raises:
        VerificationError: It would not load it.
    """
    for problem in verify_checkpoint(folder).problems:
        raise VerificationError(f"The new checkpoint would not load, so nothing was written: {problem}")
