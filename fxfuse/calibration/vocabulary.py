"""Token ids against the vocabulary: an embedding reads beyond its table, or fails far from the cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fxfuse.calibration.batches import IDS
from fxfuse.errors import InputError

if TYPE_CHECKING:
    from fxfuse.calibration.records import Calibration

__all__ = ["check_vocabulary"]


def check_vocabulary(calibration: Calibration, vocab_size: int) -> None:
    """Hold every token id against the size of the model's vocabulary.

    Raises:
        InputError: One is outside; names it, its place and the size.
    """
    for part, batches in (("to fit on", calibration.fit), ("held out", calibration.held_out)):
        for index, batch in enumerate(batches):
            if IDS in batch:
                _check(f"batch {index} {part}", batch[IDS], vocab_size, calibration.source)


def _check(where: str, ids: Tensor, vocab_size: int, source: str) -> None:
    outside = ((ids < 0) | (ids >= vocab_size)).nonzero()
    if not len(outside):
        return
    place = tuple(outside[0].tolist())
    raise InputError(
        f"{source or 'The calibration data'}: token id {int(ids[place])} (in {where}, at {list(place)}) is "
        f"outside the model's vocabulary of {vocab_size}: tokenize with the model's own tokenizer."
    )
