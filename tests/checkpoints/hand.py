"""Folders of safetensors written by hand, and what tests ask of written ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fxfuse.checkpoints.folding import as_tensor
from fxfuse.checkpoints.pieces import Span, pieces
from fxfuse.checkpoints.records import Given, OutputTensor, Recipe
from fxfuse.checkpoints.tensors import DTYPES, Tensors, bytes_of

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def write_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    entries, place = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + size],
        }
        place += size
    header = json.dumps(entries).encode()
    data = b"".join(bytes(bytes_of(each.contiguous())) for each in tensors.values())
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def folder_of(folder: Path, *files: Mapping[str, torch.Tensor]) -> Path:
    """A checkpoint's folder: one file, or several with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(files) == 1:
        write_file(folder / "model.safetensors", files[0])
        return folder
    places = {}
    for number, tensors in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        write_file(folder / name, tensors)
        places |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def made(tensors: Tensors, recipe: Recipe, shape: Sequence[int], dtype: str = "F32") -> torch.Tensor:
    """What a recipe comes to, put together from its pieces."""
    data = b""
    for piece in pieces(OutputTensor("out", dtype, tuple(shape), recipe), tensors):
        if isinstance(piece, Span):
            with piece.file.open("rb") as file:
                file.seek(piece.start)
                data += file.read(piece.nbytes)
        else:
            found = bytes(bytes_of(piece.make().contiguous()))
            assert len(found) == piece.nbytes
            data += found
    return as_tensor(Given(dtype, tuple(shape), data))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below, by its path."""
    return {
        each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()
    }
