"""Load a checkpoint, fused or with attention missing, as a model of transformers."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.records import Checkpoint
from fxfuse.errors import InputError
from fxfuse.loading.building import build
from fxfuse.loading.configs import dtype_of
from fxfuse.loading.devices import DeviceMap, device_in, dispatch, place
from fxfuse.loading.filling import fill

__all__ = ["load_pretrained"]

_GENERATION = "generation_config.json"


def load_pretrained(
    folder: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap = None,
) -> Any:
    """A checkpoint as a model of transformers, whose layers may differ in width and lack attention.

    The model is of the family's own class, as LlamaForCausalLM, in evaluation mode; a nemotron-nas checkpoint
    is a Llama. It generates with a cache that has an entry for each attention and none for other layers, and
    `save_pretrained` writes it in the `per_layer_config` dialect. What the installed transformers can build
    by itself is left to its `from_pretrained`.

    Args:
        folder: The folder of the checkpoint: fused by `fxfuse checkpoint`, one of nemotron-nas,
            `per_layer_config`, Model-Optimizer AnyModel or LLM-Drop, or a plain one.
        dtype: The type of the weights, as torch.bfloat16 or "bfloat16"; as the config says by default.
        device_map: A device, "auto", or devices by modules' names; "cpu" by default.

    Raises:
        InputError: There is no such checkpoint, type or device, it contradicts itself, or transformers is not
            installed or does not take the configuration.
    """
    _need_transformers()
    from transformers import GenerationConfig

    checkpoint = open_checkpoint(Path(folder))
    chosen = dtype_of(checkpoint, dtype)
    model = build(checkpoint, chosen)
    places = place(model, device_map)
    if _built_alike(checkpoint, model, chosen):
        return _from_pretrained(checkpoint.folder, chosen, device_map, places)
    fill(model, checkpoint.tensors, partial(device_in, places))
    model.config.name_or_path = str(checkpoint.folder)
    if (checkpoint.folder / _GENERATION).exists():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    dispatch(model, places)
    return model


def _need_transformers() -> None:
    try:
        from transformers import __version__ as found
    except ImportError:
        found = "0"
    if int(found.partition(".")[0]) < 5:
        raise InputError(
            "Checkpoints are loaded as models of transformers 5 or newer: install it with pip install "
            "'fxfuse[checkpoints]'."
        )


def _built_alike(checkpoint: Checkpoint, model: Any, dtype: torch.dtype) -> bool:
    """Whether transformers builds the same model from the folder: parameters of the same names and shapes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if checkpoint.dialect not in ("plain", "per_layer_config"):
        return False
    auto: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(checkpoint.folder)
            theirs = auto.from_config(config, dtype=dtype)
    except Exception:  # building what it does not know ends in errors of any kind
        return False
    return _shapes(theirs) == _shapes(model)


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _from_pretrained(
    folder: Path, dtype: torch.dtype, device_map: DeviceMap, places: dict[str, torch.device]
) -> Any:
    """What transformers loads; it wants accelerate for any device_map, also where nothing is spread."""
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    if set(places) == {""}:
        return auto.from_pretrained(folder, dtype=dtype).to(places[""])
    return auto.from_pretrained(folder, dtype=dtype, device_map=device_map)
