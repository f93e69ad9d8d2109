"""The plan: which groups to fuse, what each is expected to cost and to save. One JSON for every front end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fxfuse.analysis.records import ModelId

__all__ = ["FrontPoint", "Plan", "PlannedGroup"]


@dataclass(frozen=True)
class PlannedGroup:
    """Consecutive blocks, by layer path, that become one wide FFN; kl in nats, latency in milliseconds.

    kl is the group's own, measured where it was, else predicted (`measured` tells).
    """

    blocks: tuple[str, ...]
    kl: float | None = None
    sqnr_db: float | None = None
    measured: bool = False
    latency_ms: float | None = None


@dataclass(frozen=True)
class FrontPoint:
    """One point of the Pareto front: the groups' lengths in order over all chains (1 = left sequential).

    depth: FFNs in a row left, over all chains. predicted_kl: the sum of the groups', in nats; None where the
    analysis has no KL. kl, kl_error: measured end to end; None where not measured. within: it keeps the
    bounds on each group's SQNR and on the KL.
    """

    lengths: tuple[tuple[int, ...], ...]
    depth: int
    predicted_kl: float | None = None
    kl: float | None = None
    kl_error: float | None = None
    latency_ms: float | None = None
    chosen: bool = False
    within: bool = True


@dataclass
class Plan:
    """Groups for one model; `budget` is what they were chosen under; front: loss against depth or latency.

    kl, kl_error: of all groups together at the logits, in nats; None where not measured.
    """

    id: ModelId
    groups: tuple[PlannedGroup, ...]
    budget: dict[str, Any] = field(default_factory=dict)
    predicted_kl: float | None = None
    kl: float | None = None
    kl_error: float | None = None
    front: tuple[FrontPoint, ...] = ()
    model: str = ""
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, ready for JSON."""
        return {"kind": "fxfuse plan", "format": 1, **asdict(self)}

    def __str__(self) -> str:
        """The table."""
        from fxfuse.planning.table import render_plan

        return render_plan(self)

    def to_json(self) -> str:
        """The plan as a JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
