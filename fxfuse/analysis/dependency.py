r"""The block dependency matrix of FFN Fusion (arXiv 2503.18908, section 3.2).

    M_ij = mean over tokens of 1 - cos(h_j, h_j with update i left out)        h_j = what update j adds

One run for every update, from that update on, on many windows at once. Summed over the pairs of a group it
ranks groups as their measured KL does; its mean and its maximum do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fxfuse.analysis.drift import CosineMeter
from fxfuse.analysis.records import Dependency
from fxfuse.calibration.batches import positions
from fxfuse.frontends.protocol import Batch, Runnable
from fxfuse.passes.attention import StreamUpdate
from fxfuse.passes.records import Value
from fxfuse.passes.view import Op, root
from fxfuse.progress import Progress, silent, track

__all__ = ["measure_dependency"]


def measure_dependency(
    front: Runnable,
    updates: Sequence[StreamUpdate],
    batches: Sequence[Batch],
    progress: Progress = silent,
) -> Dependency:
    """M over all updates of the stream, on `batches`."""
    meters = {(i, j): CosineMeter() for j in range(len(updates)) for i in range(j)}
    for batch, i in track(_jobs(batches, len(updates)), "measuring dependencies", progress):
        if i == 0:
            streams, added = _sequential(front, batch, updates)
        left_out = {updates[i].out: streams[i]}
        for j, h in enumerate(_added(front, batch, updates[i + 1 :], left_out), i + 1):
            meters[i, j].add(added[j], h, positions(batch))
    size = range(len(updates))
    rows = [[max(0.0, 1 - meters[i, j].result()) if i < j else 0.0 for j in size] for i in size]
    names, kinds = tuple(each.name for each in updates), tuple(each.kind for each in updates)
    return Dependency(names, kinds, tuple(map(tuple, rows)))


def _jobs(batches: Sequence[Batch], updates: int) -> list[tuple[Batch, int]]:
    return [(batch, i) for batch in batches for i in range(updates - 1)]


def _sequential(
    front: Runnable, batch: Batch, updates: Sequence[StreamUpdate]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The stream before every update, and what each adds to it."""
    streams = [each.x for each in updates]
    values = _values(front, batch, [*streams, *_wanted(updates)], {})
    return [values[each] for each in streams], [_of(values, each) for each in updates]


def _added(
    front: Runnable, batch: Batch, updates: Sequence[StreamUpdate], known: Mapping[Value, torch.Tensor]
) -> list[torch.Tensor]:
    """What every update adds, with `known` values taken as given."""
    values = _values(front, batch, _wanted(updates), known)
    return [_of(values, each) for each in updates]


def _wanted(updates: Sequence[StreamUpdate]) -> list[Value]:
    """The branches; the streams before and after where the add itself does more than add."""
    wanted: list[Value] = []
    for each in updates:
        wanted += [each.out, each.x] if isinstance(each.branch, Op) else [each.branch]
    return wanted


def _of(values: Mapping[Value, torch.Tensor], update: StreamUpdate) -> torch.Tensor:
    hidden = isinstance(update.branch, Op)
    return values[update.out] - values[update.x] if hidden else values[update.branch]


def _values(
    front: Runnable, batch: Batch, wanted: Sequence[Value], known: Mapping[Value, torch.Tensor]
) -> dict[Value, torch.Tensor]:
    """Values of one run, those that are known under another name included."""
    values = {each: known[stream] for each in wanted if (stream := root(front.view, each)) in known}
    computed = [each for each in dict.fromkeys(wanted) if each not in values]
    found = front.run(batch, computed, known) if computed else []
    return values | dict(zip(computed, found, strict=True))
