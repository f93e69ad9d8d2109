"""How a distillation is done: everything that decides its result but the models and the data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fxfuse.errors import InputError

__all__ = ["OPTIMIZERS", "PRECISIONS", "RATES", "Recipe"]

OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "bf16", "fp32")
RATES = {"adamw": 1e-3, "muon": 0.02}
"""Peak rates where none is given, for healing decoders of some million weights. Polishing one that is near
its teacher takes a quarter, or it is thrown off before it comes nearer; billions of weights a tenth."""


@dataclass(frozen=True)
class Recipe:
    """The options of `distill`.

    steps: updates of the weights. batch_size: windows in each. learning_rate: the peak, of AdamW; with
    optimizer="muon" the matrices inside the layers move by `learning_rate` and everything else by AdamW's
    usual peak. label_weight: how much of the next-token cross entropy is added to the divergence.
    temperature: both logits are divided by it. trainable: a regular expression; only parameters whose name it
    is found in learn. precision: "bf16" autocast, "fp32", or "auto", which is bf16 where the processor
    multiplies it fast. seed: of the order of the windows. judge_every: steps between looks at the held-out
    windows, of which the best state is kept; without it they are judged at the start and the end. warmup: the
    share of the steps in which the rate rises; then it falls linearly to zero. judge_tokens: held-out tokens
    to judge by, at most.
    """

    steps: int = 500
    batch_size: int = 8
    learning_rate: float | None = None
    optimizer: str = "adamw"
    label_weight: float = 0.0
    temperature: float = 1.0
    trainable: str | None = None
    precision: str = "auto"
    seed: int = 0
    judge_every: int | None = None
    judge_tokens: int = 65536
    warmup: float = 0.05

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Recipe:
        """A recipe of keyword arguments.

        Raises:
            InputError: There is no such option, or its value makes no sense.
        """
        known = [each.name for each in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(f"There is no option {unknown[0]}: choose from {', '.join(known)}.")
        recipe = cls(**given)
        recipe._check()
        return recipe

    @property
    def peak(self) -> float:
        """The learning rate, or the optimizer's usual one."""
        return RATES[self.optimizer] if self.learning_rate is None else self.learning_rate

    def rate_at(self, step: int) -> float:
        """The factor on the peak rate at a step, counted from 0: up, then down to zero, in lines."""
        done = (step + 0.5) / self.steps
        return min(done / self.warmup if self.warmup else 1.0, (1 - done) / (1 - self.warmup))

    def _check(self) -> None:
        for name in ("steps", "batch_size", "judge_every", "judge_tokens"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} must be a whole number above 0, not {value!r}.")
        for name in ("peak", "temperature"):
            value = getattr(self, name) if self.optimizer in RATES else 1.0
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
                raise InputError(f"{name.replace('peak', 'learning_rate')} must be above 0, not {value!r}.")
        if not isinstance(self.label_weight, (int, float)) or not 0 <= self.label_weight < math.inf:
            raise InputError(f"label_weight must be 0 or more, not {self.label_weight!r}.")
        if not isinstance(self.warmup, (int, float)) or not 0 <= self.warmup < 1:
            raise InputError(f"warmup must be a share of the steps from 0 to below 1, not {self.warmup!r}.")
        for name, allowed in (("optimizer", OPTIMIZERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")
        try:
            re.compile(self.trainable or "")
        except re.error as error:
            raise InputError(f"trainable is no regular expression ({error}): mend it.") from None
