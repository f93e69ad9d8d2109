"""Which attentions another tool decided to leave out, as the model's config.json tells it.

LLM-Drop      "drop_attn_list": [5, 6, 9]                                or one true or false for each layer
nemotron-nas  "block_configs": [{"attention": {"no_op": true}}, ...]     also "replace_with_linear", refused
transformers  "per_layer_config": {"5": {"skip": ["attention"]}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fxfuse.errors import InputError

__all__ = ["read_decisions"]

AnyPath = str | os.PathLike[str]


def read_decisions(source: AnyPath | Mapping[str, Any]) -> tuple[int, ...]:
    """The layers whose attention a configuration leaves out, in order.

    Args:
        source: A config.json, the folder that holds it, or its content.

    Raises:
        InputError: There is no such file, it is no JSON object, or it tells nothing about attention.
    """
    config, place = _read(source)
    for key, reader in _READERS.items():
        if config.get(key) is not None:
            try:
                return tuple(sorted(set(reader(config[key]))))
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise InputError(f"{key} in {place} is not as it should be ({error}): check it.") from error
    raise InputError(f"{place} does not say which attentions go: it holds none of {', '.join(_READERS)}.")


def _read(source: AnyPath | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    if isinstance(source, Mapping):
        return source, "the configuration"
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no configuration {path}: check the path.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): give the model's config.json.") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object: give the model's config.json.")
    return found, str(path)


def _llm_drop(listed: Sequence[Any]) -> list[int]:
    if all(isinstance(each, bool) for each in listed):
        return [layer for layer, gone in enumerate(listed) if gone]
    return [_layer(each) for each in listed]


def _nemotron(blocks: Sequence[Mapping[str, Any]]) -> list[int]:
    found = []
    for layer, block in enumerate(blocks):
        attention = block["attention"]
        if attention.get("replace_with_linear"):
            raise ValueError(f"layer {layer} puts a linear map in the place of its attention")
        found += [layer] if attention.get("no_op") else []
    return found


def _per_layer(layers: Mapping[str, Mapping[str, Any]]) -> list[int]:
    return [_layer(layer) for layer, own in layers.items() if "attention" in own.get("skip", ())]


def _layer(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value and not isinstance(value, str):
        raise ValueError(f"{value!r} is no layer")
    return int(value)


_READERS: dict[str, Callable[[Any], list[int]]] = {
    "drop_attn_list": _llm_drop,
    "block_configs": _nemotron,
    "per_layer_config": _per_layer,
}
