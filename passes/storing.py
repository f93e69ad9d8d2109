"""The weights of a wide FFN in the memory that its form stores them in; nothing is held twice.

    form        apart (ONNX: one initializer a slice)              together (torch: slices are views)
    two         gate, up, down                                     gate, up, down
    packed      gate_up [2W, hidden], down                         gate_up, down
    two/2       gate_0, up_0, down_0, gate_1, up_1, down_1         gate, up, down
    packed/2    gate_up_0, down_0, gate_up_1, down_1               gate_up [gate 0; up 0; gate 1; up 1], down

A bias goes by its product's name and "_bias"; of down there is one, added after the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxfuse.passes.forms import Form
from fxfuse.passes.records import Block
from fxfuse.passes.view import View
from fxfuse.passes.weights import Weights, Wide, biased_roles, kind, refill

__all__ = ["Stored", "copied", "written"]

Allocate = Callable[..., torch.Tensor]


@dataclass
class Stored:
    """The tensors by role, and the same memory as the wide FFN's weights, in slices where it is in slices."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    parts: list[Wide] = field(default_factory=list)

    @property
    def weights(self) -> Weights:
        """What `refill` writes to."""
        return self.parts[0] if len(self.parts) == 1 else self.parts


def written(
    view: View, blocks: Sequence[Block], form: Form, allocate: Allocate = torch.empty, *, apart: bool
) -> Stored:
    """The wide FFN of `blocks`; see `widen`."""
    stored = _empty(view, blocks, form, biased_roles(view, blocks), allocate, apart)
    refill(view, blocks, stored.weights)
    return stored


@torch.no_grad()
def copied(
    view: View,
    blocks: Sequence[Block],
    wide: Wide,
    form: Form,
    allocate: Allocate = torch.empty,
    *,
    apart: bool,
) -> Stored:
    """Wide weights of any origin, in the type and on the device of the blocks' own."""
    biased = {role for role in ("gate", "up", "down") if getattr(wide, f"{role}_bias") is not None}
    stored = _empty(view, blocks, form, biased, allocate, apart)
    stop = 0
    for part in stored.parts:
        start, stop = stop, stop + len(part.gate)
        for name, tensor in part.tensors().items():
            whole = getattr(wide, name)
            if name == "down":
                tensor.copy_(whole[:, start:stop])
            elif name == "down_bias":
                tensor.copy_(whole)
            elif whole is not None:
                tensor.copy_(whole[start:stop])
    return stored


def _empty(
    view: View, blocks: Sequence[Block], form: Form, biased: set[str], allocate: Allocate, apart: bool
) -> Stored:
    """Memory alone; the biases are zeros."""
    like, width, gated = kind(view, blocks), sum(b.intermediate_size for b in blocks), blocks[0].gated
    maker = _Maker(blocks[0].hidden_size, gated, form.packed(gated), biased, allocate, like)
    names, spans = form.suffixes(width), form.spans(width)
    if not apart and (len(spans) == 1 or not maker.packed):
        names, spans = [""], [(0, width)]
    if apart or len(spans) == 1:
        for name, (start, stop) in zip(names, spans, strict=True):
            maker.add(stop - start, name)
        return maker.stored
    # One packed matrix, a slice's gate and up beside each other.
    maker.add(width, "")
    whole = maker.stored
    matrix, bias = whole.tensors["gate_up"], whole.tensors.get("gate_up_bias")
    (only,) = whole.parts
    whole.parts = []
    for start, stop in spans:
        gate, up = slice(2 * start, start + stop), slice(start + stop, 2 * stop)
        biases = (None, None) if bias is None else (bias[gate], bias[up])
        whole.parts.append(Wide(matrix[gate], matrix[up], only.down[:, start:stop], *biases))
    whole.parts[0].down_bias = only.down_bias
    return whole


@dataclass
class _Maker:
    hidden: int
    gated: bool
    packed: bool
    biased: set[str]
    allocate: Allocate
    like: dict[str, Any]
    stored: Stored = field(default_factory=Stored)

    def add(self, width: int, suffix: str) -> None:
        """The memory of one slice."""
        up: torch.Tensor | None = None
        up_bias: torch.Tensor | None = None
        if self.packed:
            gate, up, gate_bias, up_bias = self._pair(width, f"gate_up{suffix}")
        else:
            gate, gate_bias = self._matrix(width, f"gate{suffix}", "gate" in self.biased)
            if self.gated:
                up, up_bias = self._matrix(width, f"up{suffix}", "up" in self.biased)
        down = self.stored.tensors[f"down{suffix}"] = self.allocate(self.hidden, width, **self.like)
        part = Wide(gate, up, down, gate_bias, up_bias)
        if not self.stored.parts and "down" in self.biased:
            part.down_bias = self.stored.tensors["down_bias"] = torch.zeros(self.hidden, **self.like)
        self.stored.parts.append(part)

    def _matrix(self, rows: int, name: str, biased: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        matrix = self.stored.tensors[name] = self.allocate(rows, self.hidden, **self.like)
        if not biased:
            return matrix, None
        bias = self.stored.tensors[f"{name}_bias"] = torch.zeros(rows, **self.like)
        return matrix, bias

    def _pair(self, width: int, name: str) -> tuple[torch.Tensor, torch.Tensor, Any, Any]:
        matrix, bias = self._matrix(2 * width, name, bool(self.biased & {"gate", "up"}))
        biases = (None, None) if bias is None else (bias[:width], bias[width:])
        return matrix[:width], matrix[width:], *biases
