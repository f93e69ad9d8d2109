"""The weights of a model that ranks share, put together again."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate

from fxfuse.parallel.styles import split_of

__all__ = ["whole_state"]


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A `state_dict` of plain tensors on the CPU, as before `parallelize`: packed rows in order, no padding.

    Every rank has to call it, and every rank gets all weights, which must fit into its memory.
    """
    return {name: _whole(model, name, each) for name, each in model.state_dict().items()}


def _whole(model: nn.Module, name: str, held: torch.Tensor) -> torch.Tensor:
    if not isinstance(held, DTensor):
        return held.detach().cpu()
    local = held.to_local().detach().contiguous()
    found = split_of(model.get_submodule(name.rpartition(".")[0]))
    if found is None or held.placements == (Replicate(),):
        return local.cpu()
    split, axis = found
    pieces = [torch.empty_like(local) for _ in range(split.ranks)]
    dist.all_gather(pieces, local, group=held.device_mesh.get_group())
    return split.whole([piece.cpu() for piece in pieces], axis)
