"""One update of the weights: gradient clipping, a rate that rises and falls, AdamW or Muon.

Weights of less than float32 learn in a float32 copy, of which they are the rounded values: an update is
often smaller than their rounding.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/), which torch brings along, moves
matrices inside the layers; AdamW moves norms, biases and what faces the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor, nn

from fxfuse.distillation.recipe import RATES, Recipe
from fxfuse.distillation.student import Student

__all__ = ["Learning"]

LONGEST_STEP = 1.0
"""Norm to which a gradient is clipped."""


class Learning:
    """The optimizers of a student, and all that they remember.

    Args:
        student: Whose `learned` parameters are moved.
        recipe: Rates and steps.
        classes: The size of the vocabulary.
    """

    def __init__(self, student: Student, recipe: Recipe, classes: int) -> None:
        self.recipe = recipe
        self.weights = student.learned
        self.masters = {name: _master(weight) for name, weight in self.weights.items()}
        inside = [
            name for name in self.masters if recipe.optimizer == "muon" and self._is_inside(name, classes)
        ]
        others = [name for name in self.masters if name not in inside]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        for half in (inside[::2], inside[1::2]):  # two, which two threads step at once
            if half:
                moved = [self.masters[name] for name in half]
                muon = torch.optim.Muon(moved, lr=recipe.peak, weight_decay=0.0)
                self.optimizers.append((muon, recipe.peak))
        if others:
            rate = recipe.peak if recipe.optimizer == "adamw" else RATES["adamw"]
            moved = [self.masters[name] for name in others]
            fused = student.device.type in ("cpu", "cuda")
            adam = torch.optim.AdamW(moved, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)
            self.optimizers.append((adam, rate))

    @torch.no_grad()
    def update(self, step: int, gradients: Sequence[Tensor], pool: Executor) -> bool:
        """Move the weights by the gradients of a step; False, and nothing moves, if they are not finite."""
        masters = list(self.masters.values())
        exact = [gradient.to(master.dtype) for master, gradient in zip(masters, gradients, strict=True)]
        length = nn.utils.get_total_norm(exact)
        if not torch.isfinite(length):
            return False
        factor = (LONGEST_STEP / (length + 1e-6)).clamp(max=1.0)
        for master, gradient in zip(masters, exact, strict=True):
            master.grad = gradient * factor
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * self.recipe.rate_at(step)
        list(pool.map(lambda each: each[0].step(), self.optimizers))
        for master in masters:
            master.grad = None
        self._round()
        return True

    def values(self) -> dict[str, Tensor]:
        """A copy of the weights as they are now, in the precision they learn in."""
        return {name: master.detach().clone() for name, master in self.masters.items()}

    def state(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        states = [optimizer.state_dict() for optimizer, _ in self.optimizers]
        return {"weights": {name: each.detach() for name, each in self.masters.items()}, "optimizers": states}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, master in self.masters.items():
            master.copy_(state["weights"][name])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._round()

    @torch.no_grad()
    def put(self, values: dict[str, Tensor]) -> None:
        """Give the weights other values."""
        for name, master in self.masters.items():
            master.copy_(values[name])
        self._round()

    def _round(self) -> None:
        for name, weight in self.weights.items():
            if weight is not self.masters[name]:
                weight.copy_(self.masters[name])

    def _is_inside(self, name: str, classes: int) -> bool:
        """A matrix of a numbered layer (or fused group) that does not face the vocabulary."""
        weight = self.masters[name]
        return weight.dim() == 2 and classes not in weight.shape and re.search(r"\d", name) is not None


def _master(weight: nn.Parameter) -> nn.Parameter:
    exact = weight.dtype in (torch.float32, torch.float64)
    return weight if exact else nn.Parameter(weight.detach().float())
