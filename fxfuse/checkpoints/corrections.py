"""Which blocks of a fused checkpoint are corrected ones: recovery changed their weights for good.

    recovery -> model.layers.3-4.mlp "kept": "g' + h"  ->  layers 3 and 4: norm, gate, up, down

Splitting gives these back as they were corrected, since what they were before is nowhere kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fxfuse.checkpoints.expected import layer_number
from fxfuse.checkpoints.families import Family

__all__ = ["corrected_layers", "in_block", "told_corrected"]


def corrected_layers(recovery: Mapping[str, Any] | None, family: Family) -> list[int]:
    """Layers, by their old numbers, whose weights were corrected.

    Args:
        recovery: Figures as `fxfuse.streaming.kept.KeptRecovery` has them; None: there was no recovery.
        family: The source's, which names its layers.
    """
    groups = [] if recovery is None else recovery["groups"]
    names = [name for group in groups if group["kept"] != "naive" for name in group["blocks"]]
    found = (layer_number(str(name), family.layers) for name in names)
    return sorted(number for number in found if number is not None)


def in_block(name: str, layers: Collection[int], family: Family) -> bool:
    """Whether a tensor belongs to the norm or the FFN of one of `layers`."""
    number = layer_number(name, family.layers)
    if number not in layers:
        return False
    own = name.removeprefix(f"{family.layers}.{number}.")
    return own.startswith(tuple(f"{each}." for each in (family.norm, *family.ffn_weights)))


def told_corrected(count: int) -> str:
    """What splitting gives back of that many corrected blocks; the same words wherever it is told."""
    return f"{count} block{'s come' if count != 1 else ' comes'} back corrected, not as {_were(count)}"


def _were(count: int) -> str:
    return "they were" if count != 1 else "it was"
