"""The ranks that share a model: which mesh they form, and whether they hold the same weights."""

from __future__ import annotations

import zlib
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fxfuse.errors import InputError

__all__ = ["check_same_weights", "mesh_of"]

_SAMPLE = 64


def mesh_of(mesh: DeviceMesh | None) -> DeviceMesh:
    """`mesh`, or all ranks there are.

    Raises:
        InputError: torch.distributed is not initialised, or the mesh has several axes.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise InputError(
            "torch.distributed is not initialised: start the script with torchrun and call "
            "torch.distributed.init_process_group() first."
        )
    if mesh is None:
        device = "cuda" if "nccl" in str(dist.get_backend()) else "cpu"
        return init_device_mesh(device, (dist.get_world_size(),))
    if not isinstance(mesh, DeviceMesh):
        raise InputError(f"mesh must be a DeviceMesh of torch.distributed, not {type(mesh).__name__}.")
    if mesh.ndim != 1:
        raise InputError(
            f"The mesh has {mesh.ndim} axes and tensor parallel takes one: pass that one, as mesh['tp']."
        )
    return mesh


def check_same_weights(model: nn.Module, mesh: DeviceMesh) -> None:
    """Hold a sample of every weight against the other ranks', since each rank keeps its share of its own.

    Raises:
        InputError: A rank holds another model or other weights.
    """
    own = {name: _fingerprint(each) for name, each in model.named_parameters()}
    found: list[Any] = [None] * mesh.size()
    dist.all_gather_object(found, own, group=mesh.get_group())
    for rank, other in enumerate(found):
        different = sorted(name for name in {*found[0], *other} if found[0].get(name) != other.get(name))
        if different:
            raise InputError(
                f"Rank {rank} holds another {different[0]} than rank 0: load the same checkpoint, or draw "
                "with the same seed, on every rank."
            )


def _fingerprint(parameter: nn.Parameter) -> tuple[Any, ...]:
    about = (tuple(parameter.shape), str(parameter.dtype))
    if parameter.is_meta or not parameter.numel():
        return about
    flat = parameter.detach().flatten()
    sample = flat[:: max(1, flat.numel() // _SAMPLE)].to(torch.float32).cpu()
    return (*about, zlib.crc32(sample.numpy().tobytes()))
