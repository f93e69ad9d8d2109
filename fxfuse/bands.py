"""Products with weights of another type, a band of the weight at a time.

    [ band 0 ]  ->  the same few megabytes of memory, in the product's type  ->  + x_0 W_0
    [ band 1 ]  ->                                                               + x_1 W_1

A whole weight in float64 may be four times what the model holds of it, and memory that is new for every
product takes the system longer to give than the product takes.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["product"]

_BAND = 1 << 20
"""Elements that are converted at a time: they stay in a processor's cache."""
_PART = 1 << 23
"""Elements of a weight that are brought to another device at a time."""


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Give x W^T for x [..., in] and a weight [out, in] of any type, in the type of x; without gradients.

    Numbers of 16 bits are summed in float32 and rounded once.
    """
    if x.device.type != "cpu" or weight.device.type != "cpu":
        parts = torch.split(weight, max(1, _PART // max(1, weight.shape[1])))
        return torch.cat([F.linear(x, part.to(x.device, x.dtype)) for part in parts], -1)
    kind = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    if weight.dtype == kind:
        return F.linear(x.to(kind), weight).to(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).to(kind)
    by_columns = weight.stride(0) < weight.stride(1)
    found = (_over_inputs if by_columns else _over_outputs)(rows, weight)
    return found.to(x.dtype).reshape(*x.shape[:-1], len(weight))


def _over_inputs(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The sum of products with bands of columns, which lie together in memory."""
    total = rows.new_zeros(len(rows), len(weight))
    step = min(weight.shape[1], max(1, _BAND // max(1, len(weight))))
    room = rows.new_empty(step, len(weight))
    for start in range(0, weight.shape[1], step):
        band = weight.T[start : start + step]
        total.addmm_(rows[:, start : start + step], room[: len(band)].copy_(band))
    return total


def _over_outputs(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Products with bands of rows, side by side."""
    found = rows.new_empty(len(rows), len(weight))
    step = min(len(weight), max(1, _BAND // max(1, weight.shape[1])))
    room = rows.new_empty(step, weight.shape[1])
    for start in range(0, len(weight), step):
        band = weight[start : start + step]
        found[:, start : start + step] = rows @ room[: len(band)].copy_(band).T
    return found
