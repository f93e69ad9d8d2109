"""The wide FFN of blocks with quantised weights.

    gate, up    stacked by outputs, exactly, since every output has scales of its own
    down        stacked by inputs where blocks of inputs have scales of their own; else one product a block

Quantised weights take no gain: blocks of equal gains keep their norm; others are quantised again, if asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from fxfuse.passes.elementwise import constant
from fxfuse.passes.quantised.formulas import RANGES, quantise
from fxfuse.passes.quantised.objections import INTEGER, gain_of, gains_apart, takes_no_gain
from fxfuse.passes.quantised.storage import Storage, form_of, read, stack_columns, stack_rows, uneven
from fxfuse.passes.records import Block, Linear, Step
from fxfuse.passes.view import View

__all__ = ["Product", "QuantisedGroup", "stack"]

_SLICE = 1 << 22  # weights that are quantised at a time: bounds the float64 copy

Gain: TypeAlias = tuple[torch.Tensor, torch.Tensor]
Steps: TypeAlias = tuple[tuple[str, torch.Tensor], ...]


@dataclass(frozen=True)
class Product:
    """A wide product: a storage, or a float `weight` [out, in]; then constants, one for each output."""

    storage: Storage | None
    weight: torch.Tensor | None
    steps: Steps = ()

    def matrix(self) -> torch.Tensor:
        """The weight, float64 [out, in]."""
        if self.storage is not None:
            return self.storage.dequantised()
        assert self.weight is not None
        return self.weight.double()


@dataclass(frozen=True)
class QuantisedGroup:
    """The wide FFN of some blocks. `folded`: gate and up hold the gains, so they read the unit norm.

    downs: one wide product, or for the reason `apart` one for each block. error: |W' - W| / |W| of the gate
    and up weights that were quantised again, None where none was.
    """

    gate: Product
    up: Product | None
    downs: tuple[Product, ...]
    apart: str | None
    folded: bool
    error: float | None

    def packed(self) -> Product | None:
        """Gate and up as one product; None where they are stored, or followed by constants, differently."""
        gate, up = self.gate, self.up
        if up is None or [kind for kind, _ in gate.steps] != [kind for kind, _ in up.steps]:
            return None
        pairs = zip(gate.steps, up.steps, strict=True)
        steps = tuple((kind, torch.cat([one, other])) for (kind, one), (_, other) in pairs)
        if gate.storage is None or up.storage is None:
            floats = [each.weight for each in (gate, up) if each.weight is not None]
            return Product(None, torch.cat(floats), steps) if len(floats) == 2 else None
        if gate.storage.form != up.storage.form or gate.storage.scale.dtype != up.storage.scale.dtype:
            return None
        return Product(stack_rows([gate.storage, up.storage]), None, steps)

    def __str__(self) -> str:
        """What was done with the weights, for a report."""
        firsts = [self.gate] if self.up is None else [self.gate, self.up]
        forms = dict.fromkeys(str(each.storage.form) if each.storage else "float" for each in firsts)
        done = "quantised again" if self.error is not None else "stacked"
        gains = "with the gains folded in" if self.folded else "without a change"
        roles = "gate and up" if self.up is not None else "gate"
        down = f"kept as {len(self.downs)} products, because {self.apart}" if self.apart else "stacked too"
        return f"{roles} ({' and '.join(forms)}) {done} {gains}; down {down}"


def stack(view: View, blocks: Sequence[Block]) -> QuantisedGroup:
    """The wide FFN of blocks between which `difference` has nothing to say, or gains alone."""
    differ = any(gains_apart(view, blocks[0], block) for block in blocks[1:])
    folded = differ or not takes_no_gain(view, blocks[0])
    noise: list[tuple[float, float]] = []
    gate = _first(view, blocks, "gate", folded, noise)
    up = _first(view, blocks, "up", folded, noise) if blocks[0].gated else None
    apart = _downs_apart(view, blocks)
    downs = tuple(_down(view, [block]) for block in blocks) if apart else (_down(view, blocks),)
    error = (sum(n for n, _ in noise) / max(sum(p for _, p in noise), 1e-300)) ** 0.5 if noise else None
    return QuantisedGroup(gate, up, downs, apart, folded, error)


def _first(
    view: View, blocks: Sequence[Block], role: str, folded: bool, noise: list[tuple[float, float]]
) -> Product:
    linears = [getattr(block.ffn, role) for block in blocks]
    gains = [gain_of(view, block) for block in blocks] if folded else []
    steps = _stacked_steps(view, blocks, linears)
    if form_of(view, linears[0]) is None:
        floats = [_matrix(view, each) for each in linears]
        steps = _moved([each.double() for each in floats], gains, steps)
        for index, (gain, _) in enumerate(gains):
            floats[index] = (floats[index].double() * gain).to(floats[index].dtype)
        return Product(None, torch.cat(floats), steps)
    storages = [read(view, each) for each in linears]
    if gains:
        steps = _moved([each.dequantised() for each in storages], gains, steps)
        grid = _grid(storages)
        pairs = zip(storages, gains, strict=True)
        storages = [_again(each, gain, grid, noise) for each, (gain, _) in pairs]
    return Product(stack_rows(storages), None, steps)


def _moved(weights: Sequence[torch.Tensor], gains: Sequence[Gain], steps: Steps) -> Steps:
    """`steps` after what the norms' biases give once they have gone through the products."""
    if not any(bool(shift.any()) for _, shift in gains):
        return steps
    pairs = zip(weights, gains, strict=True)
    return (("add", torch.cat([weight @ shift for weight, (_, shift) in pairs])), *steps)


def _grid(storages: Sequence[Storage]) -> tuple[int, int, int | None]:
    """The least and the greatest integer to quantise to, and the zero point where the scale is symmetric."""
    form = storages[0].form
    low, high = RANGES[form.kind]
    middle = (low + high + 1) // 2
    symmetric = all(bool((each.zeros() == middle).all()) for each in storages)
    if form.block is not None:
        return low, high, middle if symmetric else None
    # A quantiser may have used less than the whole range: 7 bits of 8, or both sides alike.
    low, most = min(int(each.q.min()) for each in storages), max(int(each.q.max()) for each in storages)
    if not symmetric:
        return low, most, None
    reach = max(middle - low, most - middle)
    return middle - reach, min(middle + reach, high), middle


def _again(
    own: Storage,
    gain: torch.Tensor,
    grid: tuple[int, int, int | None],
    noise: list[tuple[float, float]],
) -> Storage:
    """`own` with the gain folded in, quantised to `grid`; adds its noise and power to `noise`."""
    step = max(1, _SLICE // own.columns)
    pieces = []
    for start in range(0, len(own.q), step):
        piece = own.part(slice(start, start + step))
        weight = piece.dequantised() * gain
        q, scale, zero = quantise(weight, own.block, *grid, own.scale.dtype)
        if zero is None and own.zero is not None:
            zero = torch.full(scale.shape, grid[2] or 0)
        kind = own.zero.dtype if own.zero is not None else torch.int32
        zero = zero.to(kind) if zero is not None else None
        new = replace(piece, q=q.to(own.q.dtype), scale=scale, zero=zero)
        noise.append((float((new.dequantised() - weight).square().sum()), float(weight.square().sum())))
        pieces.append(new)
    return stack_rows(pieces)


def _downs_apart(view: View, blocks: Sequence[Block]) -> str | None:
    """Why the down products cannot be one; None if they can."""
    downs = [block.ffn.down for block in blocks]
    forms = [form_of(view, each) for each in downs]
    form = forms[0]
    if any(each != form for each in forms):
        names = sorted({str(each) if each is not None else "not quantised" for each in forms})
        return f"they are stored differently ({' and '.join(names)})"
    if any(step.kind != "add" for down in downs for step in down.steps):
        return "a multiplier follows them"
    if form is None:
        return None
    if form.operator in INTEGER:
        return f"{form.operator} rounds what it reads with one scale for the whole of it"
    return uneven([read(view, each) for each in downs])


def _down(view: View, blocks: Sequence[Block]) -> Product:
    """The down products side by side, biases summed; a multiplier stands only after one that is alone."""
    downs, hidden = [block.ffn.down for block in blocks], blocks[0].hidden_size
    steps: Steps
    if len(downs) == 1:
        steps = tuple((step.kind, _vector(view, step, downs[0], hidden)) for step in downs[0].steps)
    else:
        biases = [_vector(view, step, down, hidden) for down in downs for step in down.steps]
        steps = (("add", torch.stack(biases).sum(0)),) if biases else ()
    if form_of(view, downs[0]) is None:
        return Product(None, torch.cat([_matrix(view, each) for each in downs], 1), steps)
    return Product(stack_columns([read(view, each) for each in downs]), None, steps)


def _matrix(view: View, linear: Linear) -> torch.Tensor:
    weight = constant(view, linear.weight, None)
    weight = weight.T if linear.transposed else weight
    return weight if linear.rows is None else weight[slice(*linear.rows)]


def _stacked_steps(view: View, blocks: Sequence[Block], linears: Sequence[Linear]) -> Steps:
    """The constants after each product, stacked: kinds agree, numbers need not."""
    columns = zip(*(each.steps for each in linears), strict=True)
    stacked = []
    for steps in columns:
        vectors = [
            _vector(view, step, linear, block.intermediate_size)
            for step, linear, block in zip(steps, linears, blocks, strict=True)
        ]
        stacked.append((steps[0].kind, torch.cat(vectors)))
    return tuple(stacked)


def _vector(view: View, step: Step, linear: Linear, width: int) -> torch.Tensor:
    """A constant as float64 [width], the part of it that belongs to this product where it is packed."""
    value = constant(view, step.operand).reshape(-1)
    if linear.rows is not None and value.numel() not in (1, width):
        value = value[slice(*linear.rows)]
    return value.expand(width)
