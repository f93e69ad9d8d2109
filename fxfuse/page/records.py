"""What a page is made of besides the program's own records: the stages of the whole way, and charts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Chart", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One row of the table of the whole way; None where something was not measured.

    loss in nats/byte or nats/token with its standard error; kl to the original in nats/token; depth: updates
    of the residual stream in a row; latency_ms: the median of one call.
    """

    name: str
    loss: float | None = None
    loss_error: float | None = None
    kl: float | None = None
    kl_error: float | None = None
    depth: int | None = None
    latency_ms: float | None = None
    file: str | None = None


@dataclass(frozen=True)
class Chart:
    """One drawing in two widths, what it shows in a sentence or two, and its figures as an HTML table."""

    name: str
    title: str
    wide: str
    narrow: str
    caption: str
    figures: str
