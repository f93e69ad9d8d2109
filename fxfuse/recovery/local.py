"""Local distillation: Adam on a group's gate, up and down; no labels, and no way back through the model.

    minimise  mean over tokens of |x + update(x) - x_n|^2 / |x_n|^2        on stored activations

The rate is relative to each weight's root mean square, rises over the first steps and falls as a half cosine.
Held-out tokens are looked at on the way, and the best weights they saw are kept.
"""

from __future__ import annotations

import math

import torch

from fxfuse.passes.weights import Wide
from fxfuse.progress import track
from fxfuse.recovery.ffn import WideFfn
from fxfuse.recovery.fitting import Fitting
from fxfuse.recovery.judging import Candidate
from fxfuse.recovery.records import RecoveryOptions
from fxfuse.recovery.tokens import GroupTokens, Tokens

__all__ = ["distill_group"]

_WARM = 0.02
_BATCHES = 8
"""Stored batches that the tokens of one step come from."""


def distill_group(fitting: Fitting, start: Candidate) -> Candidate:
    """The best that the steps found, which is `start` where none did better on the held-out tokens."""
    options, best = fitting.options, start
    with torch.enable_grad():
        wide = start.wide.map(lambda tensor: tensor.clone().requires_grad_())
        optimizer = _optimizer(wide, options)
        draw = _Draw(fitting.fit, options)
        for step in track(range(1, options.steps + 1), "distilling a group", fitting.progress):
            _set_rate(optimizer, step, options)
            loss = _loss(fitting.ffn, wide, draw()) / max(start.errors.mean, 1e-30)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % options.check_every == 0 or step == options.steps:
                best = min(best, _look(fitting, wide), key=lambda each: each.errors.mean)
    return best


def _loss(ffn: WideFfn, wide: Wide, given: Tokens) -> torch.Tensor:
    wrong = given.x + ffn.update(wide, ffn.unit(given.x)) - given.end
    return (wrong.square().sum(-1) * given.weight).mean()


def _optimizer(wide: Wide, options: RecoveryOptions) -> torch.optim.Adam:
    groups = [
        {"params": [tensor], "lr": 0.0, "peak": options.rate * float(tensor.detach().square().mean().sqrt())}
        for tensor in wide.tensors().values()
    ]
    return torch.optim.Adam(groups, betas=(0.9, 0.99))


def _set_rate(optimizer: torch.optim.Adam, step: int, options: RecoveryOptions) -> None:
    warm = min(1.0, step / max(1.0, _WARM * options.steps))
    share = warm * 0.5 * (1.0 + math.cos(math.pi * (step - 1) / options.steps))
    for group in optimizer.param_groups:
        group["lr"] = share * group["peak"]


def _look(fitting: Fitting, wide: Wide) -> Candidate:
    with torch.no_grad():
        return fitting.candidate("distilled", wide.map(lambda tensor: tensor.detach().clone()))


class _Draw:
    """Draws the tokens of one step from a few stored batches."""

    def __init__(self, tokens: GroupTokens, options: RecoveryOptions) -> None:
        self.tokens, self.count = tokens, options.batch_tokens
        self.generator = torch.Generator().manual_seed(options.seed)

    def __call__(self) -> Tokens:
        order = torch.randperm(len(self.tokens.places), generator=self.generator)[:_BATCHES].tolist()
        share = -(-self.count // len(order))
        parts = [self._some(self.tokens.at(place), share) for place in order]
        return Tokens(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("x", "end", "weight"))
        )

    def _some(self, given: Tokens, count: int) -> Tokens:
        rows = torch.randint(len(given.x), (count,), generator=self.generator).to(given.x.device)
        return Tokens(given.x[rows], given.end[rows], given.weight[rows])
