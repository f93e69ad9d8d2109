"""Decoders on disk: a folder with `config.json` and `model.safetensors`, each written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from models.decoder import Decoder, DecoderConfig

__all__ = ["DEMOS", "load", "load_demo", "store", "write_whole"]

DEMOS = ("demo", "demo-dense", "demo-gelu", "demo-gelu-dense")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there, so that no reader ever sees half of it."""
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def store(model: Decoder, folder: Path) -> None:
    """Write a decoder's configuration and its weights, rounded to float16, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().to(torch.float16).contiguous() for name, value in model.state_dict().items()
    }
    write_whole(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    write_whole(folder / "config.json", (json.dumps(model.config.to_dict(), indent=1) + "\n").encode())


def load(folder: Path) -> Decoder:
    """Read a decoder that `store` wrote, in float32 and ready for inference."""
    config = DecoderConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model = Decoder(config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.float().eval()


def load_demo(name: str = "demo") -> Decoder:
    """Return a demo model of `DEMOS`.

    "demo" lacks six attentions and was healed, "demo-dense" is what it came from; "demo-gelu" and
    "demo-gelu-dense" are the same in another style: LayerNorm, ungated GELU, biases.
    """
    return load(Path(__file__).parent / name)
