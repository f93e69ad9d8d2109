"""What a match is made of: small frozen facts, with neither torch nor ONNX in them.

A *value* is whatever handle a view uses for one tensor of its graph (an fx node, a tensor name).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["Value", "Step", "Linear", "Activation", "Norm", "FFN", "Block", "Chain", "Miss", "Found"]

Value = Hashable


@dataclass(frozen=True)
class Step:
    """One constant applied after a product: `y * operand` or `y + operand` (scalar or one per channel)."""

    kind: str  # "mul", "div" or "add"
    operand: Value | float


@dataclass(frozen=True)
class Linear:
    """y = x W' then `steps` in order. `weight` evaluates to [out, in], or [in, out] where `transposed`."""

    weight: Value
    transposed: bool
    steps: tuple[Step, ...] = ()
    rows: tuple[int, int] | None = None  # the part of a packed product that is meant: start, stop of out


@dataclass(frozen=True)
class Activation:
    """The elementwise region between the first products and down_proj.

    `output` is computed from `gate` (and `up`, when gated) by elementwise operations and scalars alone.
    `fingerprint` holds its values at fixed probe points, so equal regions are equal however spelled.
    """

    name: str
    output: Value
    gate: Value
    up: Value | None
    fingerprint: tuple[float, ...]


@dataclass(frozen=True)
class Norm:
    """RMSNorm or LayerNorm over the last axis of `source`.

    `unit` is the value normalised but not yet multiplied by `gain`, `scale` times source / sqrt(mean square +
    eps); None where one operator does both and a unit-gain copy of `operator` has to be written.
    """

    kind: str  # "rms" or "layer"
    source: Value
    output: Value
    unit: Value | None
    operator: Value | None
    gain: tuple[Step, ...]  # gain and bias, in the order they are applied
    eps: float
    scale: float = 1.0


@dataclass(frozen=True)
class FFN:
    """down(act(gate(h)) * up(h)), or down(act(gate(h))) when `up` is None."""

    gate: Linear
    up: Linear | None
    down: Linear
    activation: Activation


@dataclass(frozen=True)
class Block:
    """norm + FFN + residual add: `out = x + branch`, `branch = FFN(norm(x))`.

    `made_of` names the blocks that an earlier fusion made this one of, () where it left no names; None for
    a block as its model has it.
    """

    name: str
    norm: Norm
    ffn: FFN
    x: Value
    branch: Value  # or an operator on one, where the add itself multiplies it (alpha)
    out: Value
    hidden_size: int
    intermediate_size: int
    dtype: str
    interior: frozenset[Value]  # every value the block computes, `out` apart
    made_of: tuple[str, ...] | None = None

    @property
    def gated(self) -> bool:
        """Whether the FFN multiplies an activated gate by an up projection."""
        return self.ffn.up is not None


@dataclass(frozen=True)
class Chain:
    """A maximal run of at least two blocks with nothing between them on the residual stream."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Miss:
    """A place that looked like a block, or like the next link of a chain, and is not one."""

    where: str
    reason: str


@dataclass(frozen=True)
class Found:
    """All that `find_chains` saw in one graph."""

    chains: tuple[Chain, ...]
    singles: tuple[Block, ...]
    misses: tuple[Miss, ...]
