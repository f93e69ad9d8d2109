"""Judging the student on windows it does not learn from, in full precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fxfuse.distillation.objective import MASK, count_tokens
from fxfuse.distillation.shares import Shares
from fxfuse.distillation.windows import cut
from fxfuse.divergence import Divergence, DivergenceMeter
from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch
from fxfuse.progress import Progress, track

__all__ = ["check_logits", "judge"]


def judge(
    shares: Shares, batches: Sequence[Batch], progress: Progress, safe_point: Callable[[], None]
) -> Divergence:
    """The divergence of the student's logits from the teacher's; `safe_point` is called after every batch.

    Raises:
        InputError: There is no window, or a model gives NaN.
    """
    pieces = _pieces(shares, batches)
    meter = DivergenceMeter()

    @torch.no_grad()
    def run(piece: Batch) -> tuple[Batch, Tensor, Tensor]:
        goal, logits = shares.teacher.logits(piece), shares.student.logits(piece)
        check_logits(goal, logits)
        return piece, goal.to(logits.device), logits

    found = shares.map(run, pieces)
    for piece, goal, logits in track(found, "judging on held-out windows", progress, total=len(pieces)):
        mask = piece.get(MASK)
        meter.add(goal, logits, None if mask is None else mask.bool())
        safe_point()
    return meter.result()


def _pieces(shares: Shares, batches: Sequence[Batch]) -> list[Batch]:
    """As many whole runs as `judge_tokens` allow, one at least."""
    rows, found, tokens = shares.rows or shares.recipe.batch_size, list[Batch](), 0
    for piece in (piece for batch in batches for piece in cut(batch, rows)):
        tokens += count_tokens(piece)
        whole = shares.rows in (None, len(next(iter(piece.values()))))
        if whole and (tokens <= shares.recipe.judge_tokens or not found):
            found.append(piece)
    if not found:
        raise InputError("The data hold no window to judge by: give more data or a larger held-out share.")
    return found


def check_logits(teacher: Tensor, student: Tensor) -> None:
    """Refuse logits that cannot be compared.

    Raises:
        InputError: They are of another size, or NaN.
    """
    if teacher.shape[-1] != student.shape[-1]:
        raise InputError(
            f"The teacher's vocabulary has {teacher.shape[-1]} tokens and the student's {student.shape[-1]}: "
            "distillation needs one and the same."
        )
    if teacher.shape != student.shape:
        raise InputError(
            f"The teacher gives logits {list(teacher.shape)} and the student {list(student.shape)}: they "
            "must be of the same tokens."
        )
    for role, logits in (("teacher", teacher), ("student", student)):
        if logits.isnan().any():
            raise InputError(f"The {role} gives NaN on held-out windows: look for it with fxfuse.analyze.")
