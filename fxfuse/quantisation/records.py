"""What quantising did to a fused model, as plain facts for the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fxfuse.passes.records import Miss

__all__ = ["GroupQuantisation", "Quantisation"]


@dataclass(frozen=True)
class GroupQuantisation:
    """A wide FFN after quantising.

    relative_error: of its output, against the fused float model's on the same stream. sqnr_db: of the
    group as it was written, against the sequential original. kept_float: its products were left float,
    since min_sqnr does not allow the loss that `sqnr_db` tells.
    """

    blocks: tuple[str, ...]
    relative_error: float
    sqnr_db: float
    kept_float: bool = False


@dataclass(frozen=True)
class Quantisation:
    """One model after quantising; both comparisons are what `EndToEnd` holds, empty without an output.

    products: how many were quantised; left: those with a stored float weight that were not, and why.
    bytes_before, bytes_after: of the fused model's file and data, or of its weights where there is no file.
    """

    kind: str
    products: int
    left: tuple[Miss, ...] = ()
    groups: tuple[GroupQuantisation, ...] = ()
    against_fused: dict[str, Any] = field(default_factory=dict)
    against_original: dict[str, Any] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
