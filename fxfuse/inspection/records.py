"""What an inspection found: the same facts as an object, as JSON and as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

__all__ = ["Inspection", "Line", "Place", "StreamReport"]


@dataclass(frozen=True)
class Line:
    """One step of a stream.

    kind: "start", "attention", "ffn", "norm", "experts", "other", or kinds in parallel joined by " + ".
    name: The layer path, or the node that adds the branch; `node` is that node.
    facts: What is known of it: norm, eps, activation, gated, sizes, the operator that tells.
    chain: The number of the chain it belongs to, from 1; None outside of chains.
    reason: Why it is not in a chain, or why a chain begins at it; None where there is nothing to say.
    """

    kind: str
    name: str
    node: str
    facts: dict[str, Any] = field(default_factory=dict)
    chain: int | None = None
    reason: str | None = None

    @property
    def is_ffn(self) -> bool:
        """Whether an FFN or experts are in it."""
        return "ffn" in self.kind or "experts" in self.kind


@dataclass(frozen=True)
class StreamReport:
    """One residual stream; `inside` names the branch or body that it runs in, None for the model's own."""

    name: str
    hidden_size: int | None
    inside: str | None
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Place:
    """What looks like a norm ("norm") or an FFN ("ffn") and is not in a chain, and why."""

    kind: str
    name: str
    reason: str


@dataclass
class Inspection:
    """All that was read off one model; `str()` is the text, `to_json()` the file."""

    model: str
    graph: str  # "onnx" or "torch"
    streams: list[StreamReport] = field(default_factory=list)
    chains: list[tuple[str, ...]] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    def inside(self, place: str) -> Inspection:
        """The same with `place` (" in then_branch of If_0") behind the names of blocks and streams."""
        return replace(
            self,
            streams=[
                replace(each, inside=((each.inside or "") + place).removeprefix(" in "))
                for each in self.streams
            ],
            chains=[tuple(name + place for name in chain) for chain in self.chains],
            places=[replace(each, name=each.name + place) for each in self.places],
        )

    def lines(self) -> Iterator[Line]:
        """All lines of all streams."""
        for stream in self.streams:
            yield from stream.lines

    def to_dict(self) -> dict[str, Any]:
        """The inspection as plain data, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """The inspection as a JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def write(self, width: int | None = None, brackets: str = "┌│└") -> Iterator[tuple[str, str]]:
        """The text line by line, each with its style; lines longer than `width` are folded."""
        from fxfuse.inspection.text import write_lines

        return write_lines(self, width, brackets)

    def __str__(self) -> str:
        """The text."""
        return "\n".join(text for text, _ in self.write())
