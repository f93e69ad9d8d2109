"""A checkpoint without some of its attentions: as if its config.json had left them out from the start.

Nothing is read or written. The tensors still lie in the files, where no recipe asks for them, as those of
attention that LLM-Drop left out often do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fxfuse.checkpoints.dialects import read_layers, without_attention
from fxfuse.checkpoints.records import Checkpoint, Removed

if TYPE_CHECKING:
    from fxfuse.removal.which import Which

__all__ = ["StoredAttention", "attentions", "leave_out", "removed_names", "removed_tensors"]


@dataclass(frozen=True)
class StoredAttention:
    """An attention by the path of its module, "model.layers.7.self_attn", and its layer."""

    name: str
    layer: int


def attentions(checkpoint: Checkpoint) -> list[StoredAttention]:
    """Those that the checkpoint has, in their order."""
    layers = (layer.number for layer in checkpoint.layers if layer.attention)
    return [StoredAttention(_name(checkpoint, number), number) for number in layers]


def leave_out(checkpoint: Checkpoint, which: Which) -> Checkpoint:
    """The checkpoint without the attentions that are meant, in any form that `remove_attention` takes.

    Raises:
        InputError: One of them is not there, or none is named.
    """
    from fxfuse.removal.records import Choice
    from fxfuse.removal.which import select

    gone = [each.layer for each in select(which, attentions(checkpoint), [])]
    config = without_attention(checkpoint.config, gone)
    dialect, layers = read_layers(config, str(checkpoint.folder / "config.json"))
    removed = Removed(tuple(gone), which if isinstance(which, Choice) else None)
    return replace(checkpoint, config=config, dialect=dialect, layers=layers, removed=removed)


def removed_names(checkpoint: Checkpoint) -> list[str]:
    """The paths of the attentions that were taken out."""
    layers = checkpoint.removed.layers if checkpoint.removed is not None else ()
    return [_name(checkpoint, number) for number in layers]


def removed_tensors(checkpoint: Checkpoint) -> set[str]:
    """The names of the tensors of the attentions that were taken out, their norms' included."""
    layers = checkpoint.removed.layers if checkpoint.removed is not None else ()
    family = checkpoint.family
    halves = tuple(
        f"{checkpoint.prefix(number)}.{half}."
        for number in layers
        for half in (family.attention, family.attention_norm)
    )
    return {name for name in checkpoint.tensors if name.startswith(halves)}


def _name(checkpoint: Checkpoint, layer: int) -> str:
    return f"{checkpoint.prefix(layer)}.{checkpoint.family.attention}"
