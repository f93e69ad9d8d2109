"""Judge every stage on the same held-out batches: KL to the stock model's logits, and next-token loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from fxfuse.calibration.batches import positions
from fxfuse.calibration.store import Activations
from fxfuse.divergence import Divergence, DivergenceMeter
from fxfuse.frontends.protocol import Batch, Runnable
from fxfuse.progress import Progress, silent, track

__all__ = ["Judged", "StageJudge"]


@dataclass(frozen=True)
class Judged:
    """Divergence from the stock model, and nats per token with its standard error; None without token ids."""

    divergence: Divergence
    loss: float | None
    loss_error: float | None


class StageJudge:
    """Keeps the stock model's logits and holds every other model against them; a context manager."""

    def __init__(
        self, original: Runnable, batches: Sequence[Batch], memory: int, progress: Progress = silent
    ) -> None:
        self.batches, self.progress = list(batches), progress
        self._store = Activations(memory)
        for place, batch in enumerate(track(self.batches, "running the stock model", progress)):
            self._store.put("logits", place, _logits(original, batch))

    def __enter__(self) -> StageJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def judge(self, model: Runnable) -> Judged:
        """How far `model` is from the stock model, and what it loses per token."""
        meter, losses = DivergenceMeter(), list[float]()
        for place, batch in enumerate(track(self.batches, "judging on held-out data", self.progress)):
            logits, mask = _logits(model, batch), positions(batch)
            meter.add(self._store.get("logits", place), logits, mask)
            losses += _losses(logits, batch, mask)
        if not losses:
            return Judged(meter.result(), None, None)
        windows = torch.tensor(losses, dtype=torch.float64)
        error = float(windows.std() / len(windows) ** 0.5) if len(windows) > 1 else math.nan
        return Judged(meter.result(), float(windows.mean()), error)


def _logits(model: Runnable, batch: Batch) -> torch.Tensor:
    return model.run(batch, [model.logits(batch)])[0]


def _losses(logits: torch.Tensor, batch: Batch, mask: torch.Tensor | None) -> list[float]:
    """Mean cross entropy of each window's next tokens, the first token apart."""
    ids = batch.get("input_ids")
    if ids is None or ids.shape != logits.shape[:2] or ids.shape[1] < 2:
        return []
    ids = ids.to(logits.device)
    each = F.cross_entropy(logits[:, :-1].double().transpose(1, 2), ids[:, 1:], reduction="none")
    if mask is None:
        return [float(row.mean()) for row in each]
    return [float(row[keep].mean()) for row, keep in zip(each, mask[:, 1:], strict=True) if bool(keep.any())]
