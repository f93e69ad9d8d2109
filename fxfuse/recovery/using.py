"""A wish for recovery as front ends take it: checked before any work, done once groups are chosen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from fxfuse.calibration import Calibration
from fxfuse.calibration.vocabulary import check_vocabulary
from fxfuse.errors import InputError
from fxfuse.frontends.opening import calibration_for
from fxfuse.frontends.protocol import Runnable
from fxfuse.passes.records import Block
from fxfuse.progress import Progress
from fxfuse.recovery.records import Recovered, RecoveryOptions
from fxfuse.recovery.recover import recover

__all__ = ["Recovery", "recovery_for"]


@dataclass(frozen=True)
class Recovery:
    """How to correct the weights of whatever groups are chosen, and on which data."""

    options: RecoveryOptions
    calibration: Calibration

    def __call__(self, front: object, groups: Sequence[Sequence[Block]], progress: Progress) -> Recovered:
        """The weights to write for `groups` of a front end that runs on batches."""
        return recover(cast(Runnable, front), groups, self.calibration, self.options, progress)

    def checked(self, vocab_size: int | None) -> Recovery:
        """The same, once its tokens are known to be within the model's vocabulary.

        Raises:
            InputError: They are not.
        """
        if vocab_size is not None:
            check_vocabulary(self.calibration, vocab_size)
        return self


def recovery_for(wish: Any, calibration: Any, model: str | os.PathLike[str] = "") -> Recovery | None:
    """The recovery to do, if one is asked for; `calibration` is anything that `Calibration.of` reads.

    `model` is the file, where there is one: it may fix the size of batches.

    Raises:
        InputError: The wish makes no sense, or one of the two is given without the other.
    """
    options = RecoveryOptions.of(wish)
    if options is None:
        if calibration is not None:
            raise InputError("Calibration data are for recovery: give recover='fit' or 'distill' as well.")
        return None
    if calibration is None:
        raise InputError("Recovery fits weights to data: give some, calibration=... (--data in the shell).")
    return Recovery(options, calibration_for(model, calibration))
