"""A few elements of every watched tensor, compared with what they were: writes that leave no other mark.

On a CPU they are read at every call, through views that are made once. A GPU is asked at every sixteenth call
and never waited for: it puts its answer into pinned memory, and a later call finds it there. While a stream
is captured nothing is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["EVERY", "Samples"]

EVERY = 16
"""Calls from one question to a GPU to the next."""

_COUNT = 8
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # NaN differs from itself


class Samples:
    """Tells whether any of `tensors` was written to since; all compared bit by bit."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        views: dict[tuple[torch.device, int], list[torch.Tensor]] = {}
        with torch.no_grad():
            for tensor in tensors:
                views.setdefault((tensor.device, tensor.element_size()), []).append(_view(tensor))
            self._parts: list[_Here | _Away] = []
            for (device, _), own in views.items():
                self._parts.append(_Here(own) if device.type == "cpu" else _Away(device, own))

    def differ(self) -> bool:
        """Whether a difference is known of by now."""
        return any(each.differ() for each in self._parts)


class _Here:
    """Samples in this processor's memory, all of one element size."""

    def __init__(self, views: Sequence[torch.Tensor]) -> None:
        self._views = [view.numpy() for view in views]
        self._now = np.concatenate(self._views)
        self._known = self._now.tobytes()

    def differ(self) -> bool:
        np.concatenate(self._views, out=self._now)
        return self._now.tobytes() != self._known


class _Away:
    """Samples in a device's memory, all of one element size."""

    def __init__(self, device: torch.device, views: Sequence[torch.Tensor]) -> None:
        self._device, self._views = device, list(views)
        self._known = torch.cat(self._views)
        self._calls, self._asked = 0, False
        self._answers = device.type == "cuda"  # others are waited for, as seldom
        if self._answers:
            self._answer = _pinned()
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def differ(self) -> bool:
        self._calls += 1
        if not self._asked and self._calls < EVERY:
            return False
        if not self._answers:
            self._calls = 0
            return bool(self._compare())
        if torch.cuda.is_current_stream_capturing():
            return False
        if self._asked:
            if not self._event.query():  # type: ignore[no-untyped-call]
                return False
            self._asked = False
            return bool(self._answer)
        self._calls, self._asked = 0, True
        with torch.cuda.device(self._device):
            self._answer.copy_(self._compare(), non_blocking=True)
            self._event.record()
        return False

    def _compare(self) -> torch.Tensor:
        """One boolean, on the device."""
        with torch.no_grad():
            return torch.cat(self._views).ne(self._known).any()


def _pinned() -> torch.Tensor:
    """Room for one boolean that a GPU can write while nobody waits."""
    return torch.zeros((), dtype=torch.bool, pin_memory=True)


def _view(tensor: torch.Tensor) -> torch.Tensor:
    """A view, as integers, of a few elements on the diagonal of the tensor."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.numel():
        tensor = tensor.new_zeros(1)
    count = min(_COUNT, max(tensor.shape, default=1))
    step = sum(size // count * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((count,), (step,), tensor.storage_offset())
    return flat.view(_INTEGERS[tensor.element_size()])
