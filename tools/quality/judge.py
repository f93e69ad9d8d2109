"""What decides the study: the KL of the logits on held-out bytes that took part in nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fxfuse.analysis.changes import Change
from fxfuse.analysis.measure import Measurements
from fxfuse.calibration import Calibration
from fxfuse.divergence import Divergence, DivergenceMeter
from fxfuse.frontends.protocol import Batch, Runnable
from fxfuse.passes.records import Block
from fxfuse.passes.view import root
from fxfuse.passes.weights import Wide, widen
from fxfuse.recovery.ffn import WideFfn
from models.corpus import held_out, training

__all__ = ["CONTEXT", "Judge", "calibration", "windows"]

CONTEXT = 256


def windows(data: np.ndarray[tuple[int], np.dtype[np.uint8]], count: int) -> torch.Tensor:
    """`count` windows [count, CONTEXT] of token ids, spread evenly over `data`."""
    starts = np.linspace(0, len(data) - CONTEXT, count).astype(np.int64)
    return torch.from_numpy(data[starts[:, None] + np.arange(CONTEXT)].astype(np.int64))


def calibration(tokens: int, seed: int = 0) -> Calibration:
    """Training bytes, `tokens` of them to fit on and a quarter as many held out for decisions."""
    ids = windows(training(), (tokens + tokens // 4) // CONTEXT)
    return Calibration.of(ids, held_out=0.2, seed=seed)


class Judge:
    """Measures changed models on `max_bytes` held-out bytes, in windows that see nothing before them."""

    def __init__(self, front: Runnable, max_bytes: int) -> None:
        data = held_out(max_bytes).astype(np.int64)
        rows = torch.from_numpy(data[: len(data) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
        batches = tuple({"input_ids": part} for part in rows.split(16))
        self.front, self.bytes = front, rows.numel()
        self.measured = Measurements(front, Calibration((), batches, "held-out bytes"))
        self.blocks = self.measured.chains[0].blocks

    def naive(self, groups: Sequence[Sequence[Block]]) -> Divergence:
        """With groups fused and nothing corrected."""
        return self.measured.groups_kl(groups)

    def removed(self, blocks: Sequence[Block]) -> Divergence:
        """With FFN blocks left out."""
        return self.measured.removed_kl(blocks)

    def changed(self, changes: Sequence[Change]) -> Divergence:
        """With groups fused and blocks left out together."""
        return self.measured.changes_kl(changes)

    def corrected(self, groups: Sequence[Sequence[Block]], wides: Sequence[Wide | None]) -> Divergence:
        """With groups as wide FFNs of these weights, None for those of the model."""
        states, meter = self.measured.held_out, DivergenceMeter()
        own = [
            widen(self.front.view, group) if wide is None else wide
            for group, wide in zip(groups, wides, strict=True)
        ]
        for place, batch in enumerate(states.batches):
            x = states.get(groups[0][0].x, place)
            meter.add(states.logits(place), self._logits(batch, groups, own, x))
        return meter.result()

    def _logits(
        self, batch: Batch, groups: Sequence[Sequence[Block]], wides: Sequence[Wide], x: torch.Tensor
    ) -> torch.Tensor:
        following = [*(group[0].x for group in groups[1:]), self.measured.logits]
        for group, wide, after in zip(groups, wides, following, strict=True):
            out = WideFfn(self.front.view, group[0]).apply(wide, x)
            same = root(self.front.view, after) == group[-1].out
            x = out if same else self.front.run(batch, [after], {group[-1].out: out})[0]
        return x
