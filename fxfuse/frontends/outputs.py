"""Which output of a model to compare, and whether it holds logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["choose_output"]


def choose_output(
    names: Sequence[str], values: Sequence[object], hidden_size: int
) -> tuple[int, bool] | None:
    """The index of the output to compare and whether it is logits; None if no output can be compared.

    Logits are named so, or are [..., classes] with classes other than `hidden_size`; the widest wins. Without
    any, the first floating-point output serves.
    """
    floats = [
        index
        for index, value in enumerate(values)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() >= 2
    ]
    if not floats:
        return None
    named = [index for index in floats if "logits" in names[index].lower()]
    shaped = [index for index in floats if _looks_like_logits(values[index], hidden_size)]
    candidates = named or sorted(shaped, key=lambda index: -values[index].shape[-1])  # type: ignore[attr-defined]
    return (candidates[0], True) if candidates else (floats[0], False)


def _looks_like_logits(value: object, hidden_size: int) -> bool:
    assert isinstance(value, torch.Tensor)
    return value.dim() in (2, 3) and value.shape[-1] != hidden_size and value.shape[-1] > 1
