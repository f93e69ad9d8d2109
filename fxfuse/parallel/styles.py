"""Two ways to share out a Linear, for `parallelize_module`: by output channels, and by input channels.

    y = down(act(gate(x)) * up(x))

    rank 0      x ── gate, up: rows [0, n)    ── act, mul ── down: columns [0, n)    ──┐
    rank 1      x ── gate, up: rows [n, 2n)   ── act, mul ── down: columns [n, 2n)   ──┴─ all-reduce ── y

torch's own ColwiseParallel and RowwiseParallel cut a weight into runs of equal length, and their share is a
view that keeps the whole weight in memory. These cut by a `Split` (packed products, padding) and copy.
Weights become DTensors: `Shard(0)` holds the ranks' rows in the ranks' order, see `Split.whole`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import ParallelStyle

from fxfuse.parallel.split import Split

__all__ = ["Columns", "Rows", "split_of"]

_SPLIT = "fxfuse_split"


def split_of(module: nn.Module) -> tuple[Split, int] | None:
    """How a Linear was shared out, and along which axis of its weight; None where it is whole."""
    return getattr(module, _SPLIT, None)


class _Shared(ParallelStyle):
    """A Linear of which every rank keeps a share; what crosses the ranks is in `_enter` and `_leave`."""

    dim: int

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.split = split

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        # torch annotates its hooks as giving nothing, and uses what they give.
        enter, leave = cast(Any, self._enter), cast(Any, self._leave)
        return distribute_module(module, device_mesh, self._share, enter, leave)

    def _share(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for each, parameter in list(module.named_parameters(recurse=False)):
            whole = self.dim == 1 and each == "bias"
            local = parameter.detach()
            if not whole:
                local = self.split.local(local, self.dim, mesh.get_local_rank())
            placement: Placement = Replicate() if whole else Shard(self.dim)
            held = DTensor.from_local(_moved(local, mesh), mesh, [placement], run_check=False)
            module.register_parameter(each, nn.Parameter(held, requires_grad=parameter.requires_grad))
        setattr(module, _SPLIT, (self.split, self.dim))

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> Any:
        placement: Placement = Replicate() if self.dim == 0 else Shard(-1)
        return DTensor.from_local(inputs[0], mesh, [placement], run_check=False)

    def _leave(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> torch.Tensor:
        raise NotImplementedError


class Columns(_Shared):
    """Output channels are shared out: gate, up, q, k, v. No rank waits for another.

    gather: give the whole output to all ranks (an all-gather), as for logits.
    """

    dim = 0

    def __init__(self, split: Split, *, gather: bool = False) -> None:
        super().__init__(split)
        self.gather = gather

    def _leave(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> torch.Tensor:
        if self.gather:
            output = output.redistribute(placements=[Replicate()])
        return output.to_local()  # type: ignore[no-any-return]


class Rows(_Shared):
    """Input channels are shared out: down, o. The ranks' products are summed, the one all-reduce."""

    dim = 1

    def _leave(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> torch.Tensor:
        return output.redistribute(placements=[Replicate()]).to_local()  # type: ignore[no-any-return]


def _moved(tensor: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    return tensor if tensor.is_meta else tensor.to(mesh.device_type)
