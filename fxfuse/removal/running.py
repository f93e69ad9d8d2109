"""Run a graph as if some of its attentions were not there, without changing it.

x1 = run([a1.x]);  x2 = run([a2.x], known {a1.out: x1});  ...;  run(wanted, known {an.out: xn})
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxfuse.frontends.protocol import Batch, Runnable
from fxfuse.passes.attention import Attention
from fxfuse.passes.records import Value
from fxfuse.passes.stream import values_in
from fxfuse.passes.view import View

__all__ = ["known_at", "run_without"]


def run_without(
    front: Runnable, batch: Batch, wanted: Sequence[Value], attentions: Sequence[Attention]
) -> list[torch.Tensor]:
    """The values of `wanted` when `attentions`, in their order, are all left out."""
    stages = _stages(front.view, attentions)
    found: dict[Value, torch.Tensor] = {}
    known: dict[Value, torch.Tensor] = {}
    for stage, attention in enumerate([*attentions, None]):
        own = [value for value in wanted if stages.get(value, 0) == stage]
        more = [] if attention is None else [attention.x]
        results = front.run(batch, [*own, *more], known) if own or more else []
        found |= dict(zip(own, results, strict=False))
        if attention is not None:
            known = known_at(attention, results[-1])
    return [found[value] for value in wanted]


def known_at(attention: Attention, x: torch.Tensor) -> dict[Value, torch.Tensor]:
    """What is known behind an attention that is left out: an FFN beside it reads x as well."""
    return {attention.x: x, attention.out: x}


def _stages(view: View, attentions: Sequence[Attention]) -> dict[Value, int]:
    """How many of `attentions` each value comes behind."""
    places = {attention.out: place for place, attention in enumerate(attentions, 1)}
    stages: dict[Value, int] = {}
    for value in view.values():
        op = view.op(value)
        before = max((stages.get(each, 0) for each in values_in(op)), default=0) if op is not None else 0
        stages[value] = places.get(value, before)
    return stages
