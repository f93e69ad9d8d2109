"""A checkpoint fused in memory, and nemotron-nas checkpoints to take apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file

from fxfuse.checkpoints.dialects import config_of, extra_files
from fxfuse.checkpoints.grouping import choose_groups
from fxfuse.checkpoints.layout import lay_out
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.records import Checkpoint, Layout
from tests.checkpoints import llama

Edit: TypeAlias = Callable[[dict[str, Any]], Any]


def laid_out(folder: Path, dialect: str, *, fuse: bool = True) -> tuple[Checkpoint, Layout]:
    found = open_checkpoint(folder)
    return found, lay_out(found, choose_groups(found, auto=True) if fuse else [], dialect)


def put(checkpoint: Checkpoint, layout: Layout, out: Path) -> Path:
    """A folder as the writer makes it, all in memory."""
    out.mkdir()
    save_file(llama.all_made(checkpoint, layout), out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config_of(checkpoint, layout)))
    for name, text in extra_files(layout).items():
        (out / name).write_text(text)
    return out


def nas(folder: Path, fuse: bool = True, **config: Any) -> Path:
    """A nemotron-nas checkpoint that every reader of them loads."""
    out = put(*laid_out(llama.write(folder / "in", **config), "nemotron-nas", fuse=fuse), folder / "out")
    (out / "tokenizer.model").write_bytes(b"")
    return out


def read(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def change(folder: Path, edit: Edit) -> Path:
    """Edit config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))
    return folder


def words(**values: Any) -> Edit:
    return lambda config: config.update(values)


def drop(name: str) -> Edit:
    return lambda config: config.pop(name)


def block(layer: int, part: str, **values: Any) -> Edit:
    return lambda config: config["block_configs"][layer][part].update(values)


def without(layer: int, part: str, name: str) -> Edit:
    return lambda config: config["block_configs"][layer][part].pop(name)
