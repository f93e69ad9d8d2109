"""What was chosen and removed: the same facts as an object, as JSON and as text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fxfuse.naming import spans

__all__ = ["Candidate", "Choice", "Removal", "Step"]


@dataclass(frozen=True)
class Candidate:
    """An attention that a step tried: the KL of the logits without it and all that went before, in nats."""

    name: str
    kl: float
    standard_error: float


@dataclass(frozen=True)
class Step:
    """One removal: what was tried, which went, and whether it went because it makes a run longer."""

    name: str
    kl: float
    standard_error: float
    extends: bool
    tried: tuple[Candidate, ...]


@dataclass(frozen=True)
class Choice:
    """Attentions chosen by measuring, in the order in which they went.

    kl, standard_error: of the logits without all of them against the whole model's, on the part of the data
    that they were chosen on; held_out_kl, held_out_error: on the part held out. `stopped` says why no more.
    """

    steps: tuple[Step, ...]
    layers: tuple[int, ...]
    tokens: int
    held_out_tokens: int
    held_out_kl: float | None = None
    held_out_error: float | None = None
    stopped: str = ""
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the attentions that go, in the order in which they were chosen."""
        return tuple(step.name for step in self.steps)

    @property
    def kl(self) -> float:
        """The KL without all of them on the data that they were chosen on; 0 where none was chosen."""
        return self.steps[-1].kl if self.steps else 0.0


@dataclass
class Removal:
    """What a removal did to a model.

    removed, kept: paths of attentions; misses: of those that cannot go, with the reason.
    chains_before, chains: the names of the blocks of every chain. bytes_before, bytes_after: of the weights.
    inputs, outputs: the past and present keys and values that went; renamed: those that have a new number.
    error: the greatest relative difference that verifying found; None where nothing could be run.
    """

    model: str
    output: str | None = None
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    misses: list[tuple[str, str]] = field(default_factory=list)
    chains_before: list[tuple[str, ...]] = field(default_factory=list)
    chains: list[tuple[str, ...]] = field(default_factory=list)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    choice: Choice | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data, ready for JSON."""
        return {"kind": "fxfuse removal", "format": 1, **asdict(self)}

    def to_json(self) -> str:
        """The record as a JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def summary(self) -> str:
        """One line, for a log."""
        if not self.removed:
            return "no attention was removed"
        lengths = ", ".join(str(len(chain)) for chain in self.chains) or "none"
        count = len(self.removed)
        return (
            f"removed {count} attention{'s' * (count > 1)} ({spans(self.removed)}); "
            f"chains of FFN blocks: {lengths}"
        )
