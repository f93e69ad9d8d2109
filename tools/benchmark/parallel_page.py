"""The part of docs/performance.md about tensor parallel, from a run of tools/bench_parallel.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tools.benchmark.step_model import PUBLISHED, latency_at
from tools.benchmark.tables import table

__all__ = ["PARALLEL", "parallel_page"]

Record = Mapping[str, Any]

PARALLEL = """## Tensor parallel

Written by `tools/bench_parallel.py`: a decode step of one token through a decoder whose layers but the first
and the last two lost their attention, sequential and with the run of FFNs as one; new processes for each, in
turn. On a CPU each rank computes with one thread and speaks through gloo; more ranks than cores share them,
and an all-reduce then waits for the scheduler. "Alone" is the same step with the sums over ranks left out.

The model: step = weights / (ranks x bandwidth) + parts x (own + all-reduce), where a part is an FFN or an
attention, and own what it costs beyond reading its weights. Fusing moves no fewer weights, so it saves
removed x (own + all-reduce). "Expected" takes own from the difference of the steps alone, and the all-reduce
from those timed by themselves at the step's message; what it misses is that ranks wait for the slowest.
Compiled is torch.compile with inductor. Eager, own holds what DTensor costs in Python on two ranks and more.
"""

_OWN_US = 17.4
"""Of an FFN of an eighth of a 70B model (hidden 8192, width 3584, bfloat16, one token) on an H200 with CUDA
graphs, as tools/bench.py measured: (480.5 - 358.8) / 7."""


def parallel_page(found: Record) -> Iterator[str]:
    """Steps, all-reduces, and what they mean for eight GPUs."""
    heading = ("sequential", "fused", "faster", "alone: sequential", "alone: fused", "saved", "expected")
    rows = [_row(each, found["all_reduce_us"]) for each in found["models"]]
    yield table(("hidden", "run", "ranks", *heading), rows)
    yield _all_reduces(found["all_reduce_us"])
    yield _eight()


def _row(one: Record, all_reduce: Record) -> tuple[str, ...]:
    sequential, fused = one["sequential"], one["fused"]
    own = sequential["bare"] - fused["bare"]
    reduced = _latencies(all_reduce, one["ranks"])
    expected = own + (one["removed"] * latency_at(one["message"], reduced) if reduced else 0.0)
    ratio = f"{one['ratio']:.2f} [{min(one['ratios']):.2f} to {max(one['ratios']):.2f}]"
    times = (sequential["whole"], fused["whole"])
    alone = (sequential["bare"], fused["bare"])
    saved = (sequential["whole"] - fused["whole"], expected)
    return (
        str(one["hidden"]),
        one["form"],
        str(one["ranks"]),
        *(f"{each:,.0f} µs" for each in times),
        ratio,
        *(f"{each:,.0f} µs" for each in (*alone, *saved)),
    )


def _all_reduces(all_reduce: Record) -> str:
    ranks = sorted(all_reduce, key=int)
    sizes = sorted(_latencies(all_reduce, ranks[0])) if ranks else []
    rows = [
        (f"{size / 1024:,.0f} KB", *(f"{_latencies(all_reduce, each)[size]:,.0f} µs" for each in ranks))
        for size in sizes
    ]
    return table(("all-reduce of", *(f"{each} ranks" for each in ranks)), rows)


def _latencies(all_reduce: Record, ranks: int | str) -> dict[int, float]:
    """By bytes; the keys are text where they come from a file."""
    by_size = all_reduce.get(str(ranks)) or all_reduce.get(int(ranks)) or {}
    return {int(size): us for size, us in by_size.items()}


def _eight() -> str:
    """What the published figures say in this model."""
    own, expected = _OWN_US, PUBLISHED.expected_per_part_us
    rows = [
        (f"{us:g} µs", f"{PUBLISHED.tokens_per_second(own, us):.1f}", f"{us / (own + us):.0%}")
        for us in (0, 10, 20, 30)
    ]
    published = (
        f"Published (arXiv 2503.18908): {PUBLISHED.removed_attention} tokens/s before and {PUBLISHED.fused} "
        f"after fusing 49 FFNs into 4, on {PUBLISHED.ranks} H100: {PUBLISHED.saved_us:,.0f} µs of a step for "
        f"{PUBLISHED.removed} FFNs, {PUBLISHED.per_part_us:.1f} µs each.\n"
    )
    before = (
        "From the step before fusing alone: reading a rank's weights (253e9 of 8 bits, data-sheet bandwidth) "
        f"takes {PUBLISHED.reading_us:,.0f} µs of its {1e6 / PUBLISHED.removed_attention:,.0f}. What is left "
        f"is {expected:.1f} µs for each of its {PUBLISHED.parts} parts, and the model foretells "
        f"{PUBLISHED.tokens_per_second(expected, 0.0):.1f} tokens/s.\n"
    )
    measured = (
        f"From a measurement: by itself an FFN costs {own} µs beyond its weights (hidden 8192, an eighth of "
        f"its width, on the H200 above). So an all-reduce of {PUBLISHED.message // 1024} KB over eight GPUs "
        f"would have to take {PUBLISHED.all_reduce_us(own):.1f} µs; there were no eight to "
        "measure it on. With others:\n"
    )
    drawn = table(("all-reduce", "tokens/s, fused", "share of what is saved"), rows)
    return "\n".join(["### What it means for eight GPUs\n", published, before, measured, drawn])
