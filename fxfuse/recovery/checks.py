"""What recovery refuses before any work, and what it warns of afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from fxfuse.calibration import Calibration
from fxfuse.errors import InputError
from fxfuse.naming import span
from fxfuse.passes.quantised.objections import is_quantised
from fxfuse.passes.records import Block
from fxfuse.passes.view import View
from fxfuse.recovery.records import GroupRecovery

__all__ = ["check_data", "check_groups", "data_notes", "in_graph_order"]

_TOKENS_PER_WIDTH = 2.0
"""Below it h has hardly more tokens than unknowns, and gains little."""


def check_groups(view: View, groups: Sequence[Sequence[Block]]) -> None:
    """Hold groups against what cannot be recovered.

    Raises:
        InputError: A group is quantised.
    """
    for group in groups:
        if any(is_quantised(view, block) for block in group):
            raise InputError(
                f"The blocks {span([block.name for block in group])} are quantised, and recovery corrects "
                "floating-point weights: recover the model before it is quantised, or leave recovery out."
            )


def check_data(calibration: Calibration) -> None:
    """Hold the data against what nothing can be chosen by.

    Raises:
        InputError: There are no tokens to fit on, or none held out.
    """
    if not calibration.tokens or not calibration.held_out_tokens:
        missing = "to fit on" if not calibration.tokens else "held out to choose by"
        raise InputError(f"The calibration data hold no tokens {missing}: give more of them.")


def in_graph_order(view: View, groups: Sequence[Sequence[Block]]) -> list[int]:
    """The places of the groups, as the graph meets them."""
    places = {value: place for place, value in enumerate(view.values())}
    return sorted(range(len(groups)), key=lambda index: places[groups[index][-1].out])


def data_notes(calibration: Calibration, groups: Sequence[GroupRecovery]) -> list[str]:
    """How many tokens recovery had, and a warning for each width that has too few."""
    tokens = calibration.tokens
    notes = [
        f"recovery was fitted on {tokens:,} tokens of the calibration data and judged on "
        f"{calibration.held_out_tokens:,} others"
    ]
    for width in sorted({group.width for group in groups}):
        if tokens < _TOKENS_PER_WIDTH * width:
            notes.append(
                f"recovery had {tokens:,} tokens to fit a width of {width:,}: give at least "
                f"{int(_TOKENS_PER_WIDTH * width):,}, and 16 for each unit of width where you can"
            )
    return notes
