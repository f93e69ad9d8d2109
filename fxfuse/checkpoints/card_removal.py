"""What a model card says of attention that was left out: where, and what is known of its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxfuse.checkpoints.records import Checkpoint
from fxfuse.naming import layer_words

if TYPE_CHECKING:
    from fxfuse.removal.records import Choice

__all__ = ["removal_lines"]

_NOT_MEASURED = (
    "What leaving it out costs was **not measured** here: measure it on your data before use "
    "(`fxfuse remove` with `--data`)."
)


def removal_lines(checkpoint: Checkpoint, *, fused: bool = False) -> list[str]:
    """A part of the card; nothing where no attention was taken out. fused: FFNs were fused besides."""
    removed = checkpoint.removed
    if removed is None:
        return []
    left = sum(layer.attention for layer in checkpoint.layers)
    lines = [
        f"The attention of {layer_words(removed.layers)}, by their old numbers, was removed, and the norms "
        f"before it: {left} of {left + len(removed.layers)} attentions are left.",
        _NOT_MEASURED if removed.choice is None else _measured(removed.choice),
        *(["Figures of fusing are against the model without it."] if fused else []),
    ]
    return ["## Attention removed\n", " ".join(lines) + "\n"]


def _measured(choice: Choice) -> str:
    """The KL that the choice was made by."""
    chosen = (
        f"KL divergence of the logits from those of the whole model: {choice.kl:.3g} nats per token on the "
        f"{choice.tokens:,} tokens that it was chosen on"
    )
    if choice.held_out_kl is None:
        return f"{chosen}."
    error = "" if choice.held_out_error is None else f" ± {choice.held_out_error:.2g}"
    return f"{chosen}, {choice.held_out_kl:.3g}{error} on {choice.held_out_tokens:,} held out."
