"""What the ranks of tools/bench_parallel.py do: time decode steps, and all-reduces by size.

A step is the forward of one token through a decoder with random weights, of which some layers lost their
attention; fused, each run of FFNs is one wide FFN. "Bare" is the same step with the sums over ranks left
out: what the ranks do by themselves.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import _functional_collectives as collectives

import fxfuse
from models.decoder import Decoder, DecoderConfig, LayerConfig

__all__ = ["SHAPES", "Shape", "latencies", "steps"]


@dataclass(frozen=True)
class Shape:
    """A decoder with attention in its first and last two layers alone, so with one run of `layers` - 3."""

    hidden: int
    width: int
    layers: int
    heads: int

    @property
    def removed(self) -> int:
        """FFNs that fusing takes out of the row."""
        return self.layers - 4

    def config(self, fused: bool) -> DecoderConfig:
        """The decoder: the run begins with the FFN of the second layer."""
        own, bare = LayerConfig(True, self.width), LayerConfig(False, self.width)
        run = (own, *[bare] * self.removed)
        if fused:
            run = (replace(own, intermediate_size=self.width * len(run)),)
        return DecoderConfig(
            vocab_size=1024, hidden_size=self.hidden, num_heads=self.heads, layers=(own, *run, own, own)
        )


SHAPES = {
    "256": Shape(256, 704, 16, 8),
    "1024": Shape(1024, 2816, 16, 16),
    "2048": Shape(2048, 5632, 16, 16),
}


def steps(
    shape: Shape, fused: bool, compiled: bool, seconds: float, device: str, dtype: str
) -> dict[str, Any]:
    """Microseconds of a step: the median, with and without the sums over ranks, and weights in all, bytes."""
    torch.manual_seed(0)
    model = Decoder(shape.config(fused)).to(device, getattr(torch, dtype)).eval().requires_grad_(False)
    weights = sum(each.nbytes for each in _products(model))
    model = fxfuse.parallelize(model)
    ids = torch.zeros(1, 1, dtype=torch.int64, device=device)

    def step() -> float:
        torch._dynamo.reset()
        run = torch.compile(model) if compiled else model

        def call() -> None:
            run(ids)
            if device == "cuda":
                torch.cuda.synchronize()

        return _timed(call, seconds)

    with torch.no_grad():
        found = {"whole": step()}
        with _no_sums():
            found["bare"] = step()
    return {"weights": weights, **found}


def latencies(sizes: list[int], seconds: float, device: str) -> dict[int, float]:
    """Microseconds of an all-reduce by bytes, as DTensor calls it."""
    group = dist.group.WORLD
    found = {}
    for size in sizes:
        tensor = torch.zeros(size // 4, device=device)

        def call(tensor: torch.Tensor = tensor) -> None:
            collectives.wait_tensor(collectives.all_reduce(tensor, "sum", group))
            if device == "cuda":
                torch.cuda.synchronize()

        found[size] = _timed(call, seconds)
    return found


def _timed(call: Callable[[], None], seconds: float) -> float:
    """The median of calls, as many as rank 0 makes in `seconds`; all ranks make the same number."""
    call()
    begin = time.perf_counter()
    call()
    took = [time.perf_counter() - begin]
    dist.broadcast_object_list(took, src=0)
    times = []
    for _ in range(max(10, min(2000, int(seconds / took[0])))):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    dist.barrier()
    return 1e6 * statistics.median(times)


@contextlib.contextmanager
def _no_sums() -> Iterator[None]:
    was = collectives.all_reduce
    collectives.all_reduce = lambda tensor, *_, **__: tensor
    try:
        yield
    finally:
        collectives.all_reduce = was


def _products(model: nn.Module) -> Iterator[torch.Tensor]:
    return (each.weight for each in model.modules() if isinstance(each, nn.Linear))
