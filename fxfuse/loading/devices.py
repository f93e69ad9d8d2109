"""Where a model's weights go: one device, or several as the package accelerate spreads them.

None, "cpu", "cuda", 1, torch.device(..)        one device: weights are read straight onto it
"auto", "balanced", "sequential"                over the devices that are there, layer by layer
{"model.layers.0": 0, "lm_head": "cpu", ..}     by modules' names
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from fxfuse.errors import InputError

__all__ = ["DeviceMap", "device_in", "dispatch", "place"]

DeviceMap: TypeAlias = str | int | torch.device | Mapping[str, str | int | torch.device] | None

_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


def place(model: Any, device_map: DeviceMap) -> dict[str, torch.device]:
    """The device of each module that is named; "" stands for the whole model.

    Raises:
        InputError: There is no such device, or the package that spreads models is not installed.
    """
    if isinstance(device_map, str) and device_map in _SPREAD:
        found = _spread(model, device_map)
    elif isinstance(device_map, Mapping):
        found = dict(device_map)
    else:
        found = {"": "cpu" if device_map is None else device_map}
    places = {name: _device(each) for name, each in found.items()}
    if len(set(places.values())) > 1:
        _need_accelerate()
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            device_in(places, name)
    return places


def device_in(places: Mapping[str, torch.device], name: str) -> torch.device:
    """The device of a parameter: that of the innermost module named.

    Raises:
        InputError: None is.
    """
    parts = name.split(".")
    for end in range(len(parts), -1, -1):
        if (prefix := ".".join(parts[:end])) in places:
            return places[prefix]
    raise InputError(f"device_map says nothing of {name}: name a module that holds it, or '' for the rest.")


def dispatch(model: Any, places: Mapping[str, torch.device]) -> None:
    """Let a model that lies on several devices move what it computes between them."""
    if len(set(places.values())) > 1:
        from accelerate import dispatch_model

        dispatch_model(model, device_map=dict(places), skip_keys=model._skip_keys_device_placement)


def _spread(model: Any, kind: str) -> dict[str, Any]:
    _need_accelerate()
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory, get_max_memory

    whole = list(model._no_split_modules)
    if kind == "sequential":
        memory = get_max_memory()
    else:
        low = kind == "balanced_low_0"
        memory = get_balanced_memory(model, no_split_module_classes=whole, low_zero=low)
    found: dict[str, Any] = infer_auto_device_map(model, memory, no_split_module_classes=whole)
    return found


def _need_accelerate() -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise InputError(
            "A model is spread over several devices by the package accelerate: install it with pip install "
            "accelerate, or name one device."
        )


def _device(told: Any) -> torch.device:
    if told == "disk":
        raise InputError(
            "Weights are not left on disk while a model runs: name a device, or 'cpu' for what fits no other."
        )
    try:
        found = torch.device(told)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"There is no device {told!r} here ({first}): name another in device_map.") from None
    return found
