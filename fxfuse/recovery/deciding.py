"""Keep the first candidate that also wins at the logits, on held-out tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fxfuse.divergence import Divergence, DivergenceMeter
from fxfuse.passes.records import Value
from fxfuse.passes.weights import Wide
from fxfuse.progress import Progress
from fxfuse.recovery.ffn import WideFfn
from fxfuse.recovery.judging import Candidate, is_sure
from fxfuse.recovery.streams import Stream

__all__ = ["Decision", "Judgement", "decide", "lower", "total_kl"]


@dataclass(frozen=True)
class Decision:
    """What is kept of a group, why, and the KL with the naive form and with it; None without logits."""

    kept: Candidate
    reason: str
    before: Divergence | None = None
    after: Divergence | None = None


@dataclass(frozen=True)
class Judgement:
    """Decides on group `index` of a stream; `logits` is None where the model has none."""

    ffn: WideFfn
    stream: Stream
    index: int
    logits: Value | None
    progress: Progress

    def decide(self, naive: Candidate, better: Sequence[Candidate]) -> Decision:
        """`better` are the candidates that win locally, the best first."""
        self.progress("judging a group at the logits")
        return decide(naive, better, self._kl)

    def _kl(self, candidate: Candidate) -> Divergence | None:
        if self.logits is None:
            return None
        return total_kl(self.stream, self.index, self.logits, self.ffn, candidate.wide)


def decide(
    naive: Candidate, better: Sequence[Candidate], measure: Callable[[Candidate], Divergence | None]
) -> Decision:
    """The first of `better` that wins by its KL too; `measure` gives None where there are no logits."""
    before = measure(naive)
    for candidate in better:
        after = measure(candidate)
        if before is None or after is None:
            return Decision(candidate, "it wins on held-out tokens; the model has no logits to judge by")
        if lower(after, before):
            return Decision(candidate, "it wins on held-out tokens", before, after)
    lost = "what wins locally does not win at the logits" if better else "nothing wins on held-out tokens"
    return Decision(naive, lost, before, before)


def total_kl(stream: Stream, index: int, logits: Value, ffn: WideFfn, wide: Wide) -> Divergence:
    """The KL with group `index` fused with these weights, and the rest sequential."""
    meter, states = DivergenceMeter(), stream.states
    for place in range(len(states.batches)):
        end = ffn.apply(wide, stream.start(index, place))
        meter.add(states.logits(place), stream.onward(index, place, end, logits), states.mask(place))
    return meter.result()


def lower(one: Divergence, other: Divergence) -> bool:
    """Whether `one` is surely below `other`, window by window."""
    gains = torch.tensor(other.windows, dtype=torch.float64) - torch.tensor(one.windows, dtype=torch.float64)
    return one.kl < other.kl and is_sure(gains)
