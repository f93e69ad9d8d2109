"""The part of docs/performance.md about checkpoints on disk, from a run of tools/bench_checkpoint.py."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from tools.benchmark.tables import table

__all__ = ["CHECKPOINT", "checkpoint_page"]

Record = Mapping[str, Any]

CHECKPOINT = """## Checkpoints on disk

Written by `tools/bench_checkpoint.py`: a checkpoint of random weights is copied (`cp`, then `sync`) and fused
(`fxfuse checkpoint` under GNU time), in turn; medians. Memory is everything resident, mapped files too, and
most of it is what importing torch takes. Then it is fused again, killed at random moments and begun anew by
the same command; "same bytes" is against the undisturbed run. "No room": nothing but the error is left.
"""


def checkpoint_page(found: Record) -> Iterator[str]:
    """One row for each checkpoint."""
    heading = (
        "weights",
        "largest group",
        "peak memory",
        "cp + sync",
        "fused",
        "ratio",
        "kills",
        "same bytes",
    )
    yield table(("checkpoint", *heading, "no room"), [_row(each) for each in found["results"]])


def _row(each: Record) -> tuple[str, ...]:
    return (
        each["name"],
        *(f"{each[name] / 1e9:.2f} GB" for name in ("weights", "largest_group", "rss")),
        *(f"{statistics.median(each[name]):.1f} s" for name in ("copying", "fusing")),
        f"{each['ratio']:.2f}",
        str(each["kills"]),
        "yes" if each["same"] else "NO",
        "clean" if each["full"].get("clean") else "NOT CLEAN",
    )
