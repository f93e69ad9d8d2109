"""What was written, or in a dry run would be, in the words of a terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fxfuse.checkpoints.corrections import told_corrected
from fxfuse.checkpoints.records import Group, Layout
from fxfuse.checkpoints.shards import Shard
from fxfuse.disks import size_words
from fxfuse.naming import layer_words, printable, span
from fxfuse.planning.records import Plan

__all__ = ["CheckpointReport", "SplitCheckpoint", "loss_words", "padding", "recovery_lines", "sizes"]


@dataclass
class CheckpointReport:
    """A checkpoint that was fused. output: its folder, None in a dry run.

    layers: how many there were and are. removed: those whose attention was left out before. folded: of
    `groups`, those whose gains went into the weights; corrected: those that recovery gave other weights.
    loss: what is known of the loss of fusing, in words; "" where `recovery` has the figures.
    padded: channels of zeros by layer. files: bytes of each file of weights. left_behind: files of the source
    that did not go along. recovery: figures of corrected weights, see `fxfuse.streaming.kept`. resumed: a
    killed run's work was taken over.
    """

    source: str
    dialect: str
    layers: tuple[int, int]
    groups: list[Group]
    folded: list[Group]
    padded: dict[int, int]
    weights: tuple[int, int]
    files: dict[str, int]
    left_behind: list[str] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    corrected: list[Group] = field(default_factory=list)
    loss: str = ""
    notes: list[str] = field(default_factory=list)
    recovery: Mapping[str, Any] | None = None
    output: str | None = None
    resumed: bool = False
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """The report as a JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def summary(self) -> str:
        """One line, for a log."""
        before, after = self.layers
        ffns = sum(map(len, self.groups))
        groups = f"{len(self.groups)} group{'s' * (len(self.groups) != 1)}"
        return f"{ffns} FFNs in {groups}, {before} layers became {after}, written as {self.dialect}"

    def __str__(self) -> str:
        """What became of which layers, the files with their sizes, and where they are."""
        lines = [f"{self.source}: {self.summary()}", *_removed(self.removed), *map(self._group, self.groups)]
        lines += [f"  layer {number}: {count} channels of zeros" for number, count in self.padded.items()]
        lines += recovery_lines(self.recovery)
        lines += [f"fusion loss: {self.loss}"] if self.loss else []
        lines += _files(self.files)
        if self.left_behind:
            lines.append(f"left behind: {', '.join(self.left_behind)}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(map(printable, [*lines, _place(self.output)]))

    def _group(self, group: Group) -> str:
        gain = "gains folded into the weights" if group in self.folded else "gain kept as it was"
        gain = "weights corrected, gains in them" if group in self.corrected else gain
        return f"  layers {group[0]} to {group[-1]}: {len(group)} FFNs, {gain}"


@dataclass
class SplitCheckpoint:
    """A fused checkpoint that was split.

    exact, rounded: tensors that were moved as they are, and those that a gain or a factor was taken out of,
    which are the source's to rounding. corrected: layers whose FFNs recovery gave other weights for good, and
    corrected_tensors how many tensors they have, which count for neither of these two.
    dropped: tensors of the source that its own config left out, and the fused checkpoint therefore has not.
    removed: layers whose attention was left out when it was fused.
    """

    source: str
    layers: tuple[int, int]
    exact: int
    rounded: int
    dropped: list[str]
    removed: list[int]
    files: dict[str, int]
    output: str | None = None
    resumed: bool = False
    seconds: float = 0.0
    corrected: list[int] = field(default_factory=list)
    corrected_tensors: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """How many tensors are as they were, and where they are."""
        before, after = self.layers
        counts = f"{self.exact} tensors moved as they are, {self.rounded} back to rounding"
        how = "" if self.corrected else " as before fusing"
        if self.corrected:
            counts += f", {self.corrected_tensors} of corrected blocks"
        lines = [
            f"{self.source}: {before} layers became {after}{how}; {counts}",
            *_files(self.files),
        ]
        if self.corrected:
            lines.append(
                f"note: {told_corrected(len(self.corrected))}: those of {layer_words(self.corrected)}"
            )
        if self.removed:
            lines.append(
                f"note: the attention of {layer_words(self.removed)} was left out before fusing, and is "
                "not given back"
            )
        elif self.dropped:
            lines.append(f"note: {len(self.dropped)} tensors that the config leaves out are not given back")
        return "\n".join(map(printable, [*lines, _place(self.output)]))


def _removed(layers: Sequence[int]) -> list[str]:
    """Whose attention is left out."""
    return [f"  attention left out of {layer_words(layers)}"] if layers else []


def recovery_lines(recovery: Mapping[str, Any] | None) -> list[str]:
    """What was corrected, and the KL before and after."""
    if recovery is None:
        return []
    kept = [
        f"  recovery of {span(group['blocks'])}: {group['kept']} ({group['reason']})"
        for group in recovery["groups"]
    ]
    before, after = recovery["kl_before"], recovery["kl_after"]
    notes = [f"note: {note}" for note in recovery["notes"]]
    return [*kept, f"KL with all groups: {before:.3g} nats before recovery, {after:.3g} after", *notes]


def loss_words(plan: Plan | None) -> str:
    """What is known of the loss of fusing: a plan's figures, or that it was not measured."""
    if plan is None:
        return "not measured (these groups come from no plan)"
    if plan.kl is not None:
        error = f" ± {plan.kl_error:.2g}" if plan.kl_error is not None else ""
        return f"{plan.kl:.3g}{error} nats per token, measured by the plan"
    if plan.predicted_kl is not None:
        return f"{plan.predicted_kl:.3g} nats per token, predicted by the plan and not measured"
    return "not measured (the plan brings no figures of it)"


def sizes(shards: Sequence[Shard]) -> dict[str, int]:
    """Bytes of every file of weights."""
    return {shard.file: shard.nbytes for shard in shards}


def padding(layout: Layout) -> dict[int, int]:
    """Channels of zeros by layer."""
    return {layer.number: layer.padding for layer in layout.layers if layer.padding}


def _files(files: dict[str, int]) -> list[str]:
    total = f"{len(files)} file{'s' * (len(files) != 1)}, {size_words(sum(files.values()))}"
    return [f"weights: {total}", *(f"  {name}: {size_words(size)}" for name, size in files.items())]


def _place(output: str | None) -> str:
    return f"written to {output}" if output else "nothing was written"
