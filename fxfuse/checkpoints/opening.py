"""Open a checkpoint: its config.json in whichever dialect, held against its tensors.

Nothing but config.json and the headers of the files is read, whatever the size, so that everything which can
be known to be wrong is told before any long work. Only an output that is stored though it is said to be tied
is held against the embeddings, see `fxfuse.checkpoints.tying`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxfuse.checkpoints.dialects import read_layers
from fxfuse.checkpoints.expected import problems
from fxfuse.checkpoints.families import family_of
from fxfuse.checkpoints.records import Checkpoint
from fxfuse.checkpoints.settings import ACTIVATIONS, count_of, setting
from fxfuse.checkpoints.tensors import Tensors
from fxfuse.checkpoints.tying import as_stored
from fxfuse.errors import InputError

__all__ = ["open_checkpoint", "read_config"]


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder.

    Raises:
        InputError: A file is missing or broken, the model cannot be fused, or config.json contradicts itself
            or the tensors.
    """
    found = read_config(folder)
    wrong = next(problems(found), None)
    if wrong is not None:
        raise InputError(wrong)
    return found


def read_config(folder: Path) -> Checkpoint:
    """The checkpoint as its config.json has it, not yet held against the tensors."""
    tensors = Tensors(folder)
    place = folder / "config.json"
    config = _read(place)
    if config.get("quantization_config"):
        raise InputError(f"{folder} holds quantised weights: give the checkpoint before it was quantised.")
    family = family_of(config, str(place))
    hidden = count_of(config, "hidden_size", str(place))
    _check_heads(config, str(place))
    dialect, layers = read_layers(config, str(place))
    for own in (config, *({**config, **layer.own} for layer in layers if layer.own)):
        _check_arithmetic(own, str(place))
    return Checkpoint(folder, as_stored(config, tensors), family, dialect, hidden, layers, tensors)


def _read(place: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(place.read_bytes())
    except FileNotFoundError:
        raise InputError(f"There is no {place}: give the folder of a Hugging Face checkpoint.") from None
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise InputError(f"{place} is not JSON: copy it anew.") from None
    if not isinstance(found, dict):
        raise InputError(f"{place} holds no JSON object: copy it anew.")
    return found


def _check_heads(config: Mapping[str, Any], place: str) -> None:
    """Whether heads can be as many and as large as the config says."""
    heads, kv = (count_of(config, name, place) for name in ("num_attention_heads", "num_key_value_heads"))
    count_of({**config, "vocab_size": setting(config, "vocab_size")}, "vocab_size", place)
    count_of(config, "head_dim", place)
    if heads % kv:
        raise InputError(
            f"{place} has {heads} heads, which its {kv} key-value heads do not divide: correct it."
        )


def _check_arithmetic(config: Mapping[str, Any], place: str) -> None:
    """Whether the activation and what is added under the norm's root can be."""
    act, eps = setting(config, "hidden_act"), setting(config, "rms_norm_eps")
    if act not in ACTIVATIONS:
        raise InputError(
            f"{place} gives hidden_act as {act!r}, which transformers does not know: correct it, to silu or "
            "what the model was trained with."
        )
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < math.inf:
        raise InputError(
            f"{place} gives rms_norm_eps as {eps!r}, which must be a number above 0: correct it, to 1e-6 or "
            "what the model was trained with."
        )
