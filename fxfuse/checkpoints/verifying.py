"""Verify a checkpoint's folder: is it whole, and which programs will load it?

    headers, index -> config.json against tensors -> padding is zero -> the rules of every reader

Only headers and the padding are read: what weights hold, a NaN or a flipped bit, goes unnoticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxfuse.checkpoints.expected import problems
from fxfuse.checkpoints.opening import read_config
from fxfuse.checkpoints.readers import Reading, readings
from fxfuse.checkpoints.record import read_record
from fxfuse.checkpoints.records import Checkpoint
from fxfuse.naming import printable

__all__ = ["Verdict", "verify_checkpoint"]

_SHOWN = 3
"""Problems of one reader that are shown; the JSON has all."""


@dataclass(frozen=True)
class Verdict:
    """What was found in a folder. problems: what no reader loads; readings: each reader's own verdict."""

    folder: str
    family: str
    dialect: str
    layers: int
    attentions: int
    problems: tuple[str, ...]
    readings: tuple[Reading, ...]

    @property
    def loads(self) -> bool:
        """Whether the checkpoint is whole, so that fxfuse loads it."""
        return not self.problems

    def by(self, reader: str) -> Reading:
        """The verdict of one reader."""
        return next(each for each in self.readings if each.reader == reader)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain data, ready for JSON."""
        found = asdict(self)
        found["readings"] = [{**asdict(each), "loads": each.loads} for each in self.readings]
        return {"kind": "fxfuse verdict", "format": 1, **found}

    def to_json(self) -> str:
        """The verdict as a JSON text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def __str__(self) -> str:
        """One line on the checkpoint, one for every reader, and what was looked at."""
        counted = f"{self.layers} layers, {self.attentions} with attention"
        head = f"{self.folder}: {self.family} as {self.dialect}, {counted}"
        lines = [head, *(f"  broken: {each}" for each in self.problems)]
        width = max(len(each.reader) for each in self.readings)
        for each in self.readings:
            first, *others = _told(each, bool(self.problems))
            lines.append(f"  {each.reader:<{width}}  {first}")
            lines += [f"  {'':<{width}}      {other}" for other in others]
        lines.append("  checked: headers, config and padding, not the values of weights")
        return "\n".join(map(printable, lines))


def _told(reading: Reading, broken: bool) -> list[str]:
    if reading.loads:
        return [f"loads, {reading.how}" if reading.how else "loads"]
    if broken:
        return ["no"]
    more = len(reading.problems) - _SHOWN
    found = list(reading.problems[:_SHOWN]) + ([f"and {more} more"] if more > 0 else [])
    return [f"no: {found[0]}", *found[1:]]


def verify_checkpoint(folder: str | os.PathLike[str]) -> Verdict:
    """Whether a checkpoint is whole, and which programs will load it.

    Raises:
        InputError: A file is missing or broken, or config.json cannot be read: nothing can be said then.
    """
    checkpoint = read_config(Path(folder))
    broken = [*problems(checkpoint)]
    broken += [] if broken else _padding_problems(checkpoint)
    return Verdict(
        folder=os.fspath(folder),
        family=checkpoint.family.model_type,
        dialect=checkpoint.dialect,
        layers=len(checkpoint.layers),
        attentions=sum(layer.attention for layer in checkpoint.layers),
        problems=tuple(broken),
        readings=tuple(readings(checkpoint, broken)),
    )


def _padding_problems(checkpoint: Checkpoint) -> Iterator[str]:
    """Whether the channels that fxfuse added are zeros, where its record tells of some.

    A channel whose gate or up is zero adds nothing, whatever its column of down.
    """
    record = read_record(checkpoint.folder, missing_ok=True) or {}
    for entry in record.get("layers", []):
        layer, padding = entry.get("number"), entry.get("padding")
        if not padding or not isinstance(layer, int) or layer >= len(checkpoint.layers):
            continue
        width = checkpoint.layers[layer].intermediate_size
        for name in checkpoint.family.ffn_weights[:-1]:
            full = f"{checkpoint.prefix(layer)}.{name}.weight"
            if checkpoint.tensors.read(full, width - padding, width).count_nonzero():
                yield f"The last {padding} channels of {full} are padding and not zero: fuse it again."
