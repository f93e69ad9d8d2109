"""The gradient of one batch: on a CPU one share of it to each of two threads.

Whole shares let the threads meet once a step; threads inside each product meet a thousand times, and wait for
the slowest whenever something else wants a core. Fixed shares, summed in order, are reproducible.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from fxfuse.distillation.attention import WrittenAttention
from fxfuse.distillation.objective import count_tokens, total_loss
from fxfuse.distillation.recipe import Recipe
from fxfuse.distillation.student import Student
from fxfuse.distillation.subjects import Subject
from fxfuse.distillation.windows import cut
from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch

__all__ = ["Shares", "pays_in_bf16"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Shares:
    """Runs a teacher and a student on shares of a batch; a context manager, which holds the threads.

    `rows` is the number of windows of one run where a graph fixes it, else None.
    """

    def __init__(self, teacher: Subject, student: Student, recipe: Recipe) -> None:
        self.teacher, self.student, self.recipe = teacher, student, recipe
        self.rows = _fixed_rows(teacher, student, recipe.batch_size)
        units = recipe.batch_size // (self.rows or 1)
        on_cpu = student.device.type == teacher.device.type == "cpu"
        self.count = 2 if on_cpu and units > 1 and torch.get_num_threads() > 1 else 1
        self.weights = list(student.learned.values())
        self.autocast = recipe.precision == "bf16" or (recipe.precision == "auto" and pays_in_bf16(student))
        self._threads = torch.get_num_threads()

    def __enter__(self) -> Shares:
        each = max(1, self._threads // self.count)
        torch.set_num_threads(each)
        self.pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(each,))
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """`function` of every item, in order, no more of them in memory than there are threads."""
        for start in range(0, len(items), self.count):
            yield from self.pool.map(function, items[start : start + self.count])

    def gradients(self, batch: Batch) -> tuple[float, list[Tensor]]:
        """The mean divergence of a batch, and the gradient of its mean loss for every learned weight."""
        tokens = max(1, count_tokens(batch))
        units = -(-self.recipe.batch_size // (self.rows or 1))
        share = -(-units // self.count) * (self.rows or 1)
        return _sum(self.pool.map(lambda part: self._share(part, tokens), cut(batch, share)))

    def _share(self, part: Batch, tokens: int) -> tuple[float, list[Tensor]]:
        pieces = cut(part, self.rows) if self.rows else [dict(part)]
        return _sum(self._piece(piece, tokens) for piece in pieces)

    def _piece(self, piece: Batch, tokens: int) -> tuple[float, list[Tensor]]:
        recipe, device = self.recipe, self.student.device
        with self._precision(self.teacher), torch.no_grad():
            goal = self.teacher.logits(piece).to(device)
        with self._precision(self.student), WrittenAttention():
            logits = self.student.logits(piece)
        moved = {name: tensor.to(device) for name, tensor in piece.items()}
        loss, divergence = total_loss(logits, goal, moved, recipe.label_weight, recipe.temperature)
        if not loss.requires_grad:
            raise InputError(
                "No gradient reaches the student's parameters: its logits do not depend on them."
            )
        found = torch.autograd.grad(loss / tokens, self.weights, allow_unused=True, materialize_grads=True)
        return divergence / tokens, list(found)

    def _precision(self, subject: Subject) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(subject.device.type, torch.bfloat16, enabled=self.autocast)


def _sum(results: Iterable[tuple[float, list[Tensor]]]) -> tuple[float, list[Tensor]]:
    """Losses and gradients added up, in order."""
    total, sums = 0.0, list[Tensor]()
    for loss, gradients in results:
        total += loss
        # Into new tensors: those that autograd gives may be one and the same for two weights.
        sums = [one + other for one, other in zip(sums, gradients, strict=True)] if sums else gradients
    return total, sums


def pays_in_bf16(student: Subject) -> bool:
    """Whether the student's device multiplies bfloat16 faster than the float32 its weights are in."""
    if not any(weight.dtype == torch.float32 for weight in student.module.parameters()):
        return False
    if student.device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return fast and student.device.type == "cpu"


def _fixed_rows(teacher: Subject, student: Subject, batch_size: int) -> int | None:
    fixed = sorted({rows for rows in (teacher.rows, student.rows) if rows is not None})
    if len(fixed) > 1:
        raise InputError(
            f"The teacher runs on {teacher.rows} windows at a time and the student on {student.rows}: export "
            "one of them with open shapes."
        )
    if fixed and batch_size % fixed[0]:
        raise InputError(
            f"The graphs run on {fixed[0]} windows at a time: choose a batch_size that is a multiple of it."
        )
    return fixed[0] if fixed else None
