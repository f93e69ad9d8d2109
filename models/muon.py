"""Muon: momentum whose update is made orthogonal, for the matrices inside the layers (Jordan et al., 2024).

    update = nesterov momentum of the gradient
    weight -= rate * sqrt(max(1, rows / columns)) * orthogonal(update)

Matrices of one shape are stacked and go through the iteration together, which halves its time against one at
a time. Address: https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalise"]

QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix in `[N, rows, columns]` near 1 (Newton-Schulz, bfloat16)."""
    tall = stack.shape[-2] > stack.shape[-1]
    x = (stack.mT if tall else stack).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(stack.dtype)


class Muon(torch.optim.Optimizer):
    """The optimizer over 2-D parameters; `lr` is the spectral size of one update."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for shape, weights in by_shape.items():
                updates = orthogonalise(
                    torch.stack([self._advance(w, w.grad, group["momentum"]) for w in weights])
                )
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_add_(weights, list(updates.unbind()), alpha=-rate)

    def _advance(self, weight: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        """Move the weight's momentum on and return the direction that looks one step ahead of it."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        buffer: Tensor = state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)
