"""Load a checkpoint straight into shares: every rank reads what it keeps, and no rank ever holds the model.

    build on meta ─ share out on meta ─ read channels [start, stop) of each part, one tensor after the other

Output channels are rows of the stored tensor, input channels columns; either is read without the others.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from fxfuse.checkpoints.tensors import Tensors
from fxfuse.errors import InputError
from fxfuse.parallel.api import parallelize
from fxfuse.parallel.ranks import mesh_of
from fxfuse.parallel.styles import split_of

__all__ = ["load_parallel"]


def load_parallel(
    folder: str | os.PathLike[str],
    mesh: DeviceMesh | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    pad: bool = False,
    head: bool = True,
) -> Any:
    """What `parallelize(load_pretrained(folder, dtype), mesh)` gives, in the memory of a share.

    Every rank calls it and has to see the folder.

    Args:
        folder: A checkpoint that `load_pretrained` reads.
        mesh: One axis of ranks; all there are by default.
        dtype: The type of the weights; as the config says by default.
        pad: See `parallelize`.
        head: See `parallelize`.

    Raises:
        InputError: What `load_pretrained` or `parallelize` tell of.
    """
    from fxfuse.checkpoints.opening import open_checkpoint
    from fxfuse.loading.building import build
    from fxfuse.loading.configs import dtype_of
    from fxfuse.loading.filling import fill_buffers

    mesh = mesh_of(mesh)
    checkpoint = open_checkpoint(Path(folder))
    model = build(checkpoint, dtype_of(checkpoint, dtype))
    device = torch.device(mesh.device_type)
    fill_buffers(model, lambda _: device)
    parallelize(model, mesh, pad=pad, head=head)
    _fill(model, checkpoint.tensors, mesh, device)
    _take_generation(model, checkpoint.folder)
    return model


def _fill(model: Any, tensors: Tensors, mesh: DeviceMesh, device: torch.device) -> None:
    missing = set()
    for name, old in list(model.named_parameters(remove_duplicate=False)):
        if name not in tensors:
            missing.add(name)
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        value = _read(owner, name, old, tensors, mesh).to(device, old.dtype)
        if isinstance(old, DTensor):
            value = DTensor.from_local(value, mesh, old.placements, run_check=False)
        owner.register_parameter(
            name.rpartition(".")[2], nn.Parameter(value, requires_grad=old.requires_grad)
        )
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    left = [name for name, each in model.named_parameters(remove_duplicate=False) if each.is_meta]
    if left:
        raise InputError(f"{tensors.folder} holds no {left[0]}: copy the checkpoint anew.")


def _read(owner: nn.Module, name: str, old: torch.Tensor, tensors: Tensors, mesh: DeviceMesh) -> torch.Tensor:
    """What this rank keeps of a tensor, as it is stored."""
    found = split_of(owner)
    if found is None or not isinstance(old, DTensor) or old.placements == (Replicate(),):
        _check(name, tuple(old.shape), tensors)
        return tensors.read(name)
    split, axis = found
    rows, *others = old.shape
    _check(name, (sum(split.sizes), *others) if axis == 0 else (rows, sum(split.sizes)), tensors)
    pieces = []
    for start, stop, zeros in split.spans(mesh.get_local_rank()):
        if axis == 0:
            piece = tensors.read(name, start, stop)
        else:
            piece = tensors.read_columns(name, (0, rows), (start, stop))
        shape = list(piece.shape)
        shape[axis] = zeros
        pieces += [piece, piece.new_zeros(shape)]
    return torch.cat(pieces, axis)


def _check(name: str, shape: tuple[int, ...], tensors: Tensors) -> None:
    stored = tensors[name]
    if stored.shape != shape:
        raise InputError(
            f"{name} in {stored.file} has the shape {list(stored.shape)} where the config asks for "
            f"{list(shape)}: correct the config."
        )


def _take_generation(model: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    model.config.name_or_path = str(folder)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
