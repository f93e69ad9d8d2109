"""genai_config.json of onnxruntime-genai, for a decoder that lost attentions.

    "decoder": {"filename", "num_hidden_layers", "inputs": {"past_key_names": "past_key_values.%d.key"}}

The runtime takes the numbers of the cache from the names that the model has, so a cache with gaps keeps
num_hidden_layers; one that was numbered anew has as many as there are attentions left. Lists of layers, such
as those with a sliding window, follow.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxfuse.errors import InputError

__all__ = ["NAME", "follow", "read_config"]

NAME = "genai_config.json"


def read_config(folder: Path) -> dict[str, Any] | None:
    """The configuration in `folder`, if there is one.

    Raises:
        InputError: It is no JSON object, or has no decoder.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        decoder = found["model"]["decoder"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no configuration of onnxruntime-genai ({error}): check or remove it."
        ) from None
    return found if isinstance(decoder, dict) else None


def follow(
    config: Mapping[str, Any], filename: str, numbers: Mapping[int, int], renumbered: bool
) -> dict[str, Any]:
    """The configuration for the written model; `numbers`: new numbers of the cache that is left, by old."""
    made: dict[str, Any] = copy.deepcopy(dict(config))
    decoder = made["model"]["decoder"]
    decoder["filename"] = filename
    if renumbered:
        decoder["num_hidden_layers"] = len(numbers)
    for own in (decoder, decoder.get("sliding_window")):
        if isinstance(own, dict) and isinstance(own.get("layers"), list):
            own["layers"] = [numbers[each] for each in own["layers"] if each in numbers]
    return made
