"""What is descended: the divergence of the student's next-token distribution from the teacher's.

    loss = T^2 KL(softmax(teacher / T) || softmax(student / T)) + label_weight * next-token cross entropy

summed over the tokens of a piece (Hinton et al., arXiv 1503.02531; T^2 keeps the size of the gradient).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch

__all__ = ["MASK", "count_tokens", "token_ids", "total_loss"]

MASK = "attention_mask"


def total_loss(
    student: Tensor, teacher: Tensor, batch: Batch, label_weight: float, temperature: float
) -> tuple[Tensor, float]:
    """The loss of logits `[windows, tokens, classes]`, summed over tokens, and its divergence alone.

    Where the batch holds an attention mask `[windows, tokens]`, tokens that it hides count for nothing.
    """
    scaled = student.float() / temperature if temperature != 1.0 else student.float()
    goal = (teacher.float() / temperature).log_softmax(-1)
    each = F.kl_div(scaled.log_softmax(-1), goal, reduction="none", log_target=True).sum(-1)
    shown = _shown(batch, each)
    divergence = (each if shown is None else each * shown).sum() * temperature**2
    if not label_weight:
        return divergence, float(divergence.detach())
    return divergence + label_weight * _label_loss(student, batch, shown), float(divergence.detach())


def count_tokens(batch: Batch) -> int:
    """The tokens that count in a batch."""
    mask = batch.get(MASK)
    if mask is not None and mask.dim() == 2:
        return int((mask != 0).sum())
    first = next(iter(batch.values()))
    return first.shape[0] * first.shape[1]


def token_ids(batch: Batch) -> Tensor:
    """The token ids `[windows, tokens]` of a batch.

    Raises:
        InputError: There are none.
    """
    found = batch.get("input_ids")
    others = [
        value for name, value in batch.items() if value.dtype in (torch.int64, torch.int32) and name != MASK
    ]
    if found is None and len(others) != 1:
        raise InputError(
            "label_weight needs the token ids: call them input_ids in the data, or leave it out."
        )
    return others[0] if found is None else found


def _label_loss(student: Tensor, batch: Batch, shown: Tensor | None) -> Tensor:
    ids = token_ids(batch).to(student.device)
    each = F.cross_entropy(student[:, :-1].float().transpose(1, 2), ids[:, 1:].long(), reduction="none")
    return (each if shown is None else each * shown[:, 1:]).sum()


def _shown(batch: Batch, each: Tensor) -> Tensor | None:
    mask = batch.get(MASK)
    return None if mask is None or mask.shape != each.shape else (mask != 0).to(each)
