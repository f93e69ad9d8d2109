"""What a checkpoint is, what is to become of it, and how every output tensor is made: nothing but data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fxfuse.checkpoints.families import Family
from fxfuse.checkpoints.tensors import Tensors

if TYPE_CHECKING:
    from fxfuse.removal.records import Choice

__all__ = [
    "Checkpoint", "Copy", "Given", "Group", "Layer", "Layout", "OutputLayer", "OutputTensor", "Part",
    "Recipe", "Removed", "Same", "Stacked", "Summed",
]  # fmt: skip

Group: TypeAlias = tuple[int, ...]
"""Layers, by number, whose FFNs become one: consecutive but for layers that hold nothing, and only the first
may have attention."""


@dataclass(frozen=True)
class Layer:
    """One layer of the checkpoint as it is: `own`: what its config says of it alone, as key-value heads."""

    number: int
    attention: bool
    ffn: bool
    intermediate_size: int
    own: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Removed:
    """Layers whose attention is left out of a checkpoint that has it; `choice`: by what they were chosen."""

    layers: tuple[int, ...]
    choice: Choice | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A folder of safetensors files with its config.json; `dialect` is how that says that layers differ.

    "plain": they do not. "nemotron-nas", "per_layer_config", "anymodel": see `fxfuse.checkpoints.dialects`.
    "llm-drop": `drop_attn_list`.

    removed: what is taken out of it, as `config` and `layers` say already.
    """

    folder: Path
    config: Mapping[str, Any]
    family: Family
    dialect: str
    hidden_size: int
    layers: tuple[Layer, ...]
    tensors: Tensors
    removed: Removed | None = None

    def prefix(self, layer: int) -> str:
        """What the names of a layer's tensors begin with."""
        return f"{self.family.layers}.{layer}"


@dataclass(frozen=True)
class OutputLayer:
    """A layer of the fused checkpoint, made of one layer or of a group.

    intermediate_size: with `padding`, channels of zeros that a format asks for; 0 where there is no FFN.
    keeps_gain: the norm keeps the gain that all blocks share, bit for bit, and nothing is folded.
    """

    number: int
    sources: Group
    attention: bool
    intermediate_size: int
    padding: int = 0
    keeps_gain: bool = True

    @property
    def fused(self) -> bool:
        """Whether it is made of several."""
        return len(self.sources) > 1

    @property
    def ffn(self) -> bool:
        """Whether it has an FFN."""
        return self.intermediate_size > 0


@dataclass(frozen=True)
class Layout:
    """The layers of the fused checkpoint, in the dialect that it is written in.

    Layers that hold neither attention nor an FFN are left out, and are no layer's source.
    """

    dialect: str
    layers: tuple[OutputLayer, ...]

    @property
    def groups(self) -> list[Group]:
        """The layers, by their old numbers, that became one."""
        return [layer.sources for layer in self.layers if layer.fused]


@dataclass(frozen=True)
class Copy:
    """The bytes of one tensor, or of some of its rows [start, stop), times `factor`."""

    source: str
    rows: tuple[int, int] | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Same:
    """One value everywhere: a norm of unit gain, padding."""

    value: float


@dataclass(frozen=True)
class Given:
    """A tensor that is at hand as the bytes that a file would hold: corrected weights, gains kept aside."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def __repr__(self) -> str:
        return f"Given({self.dtype}, {self.shape}, {sha256(self.data).hexdigest()})"


@dataclass(frozen=True)
class Part:
    """One block's share: `rows` of tensor `source`, times the gain of its norm where one is folded.

    gain: the norm's weight, to which `gain_offset` is added; None: nothing is folded. factor: of every
    element, where a format has no place for a family's multiplier. columns: of the rows, only these.
    divided: by gain and factor instead, to undo them; 0 where a gain is 0.
    """

    source: str
    rows: tuple[int, int] | None = None
    gain: str | Given | None = None
    gain_offset: float = 0.0
    factor: float = 1.0
    columns: tuple[int, int] | None = None
    divided: bool = False


@dataclass(frozen=True)
class Stacked:
    """Parts below one another (`axis` 0: gate, up, their biases) or side by side (1: down), then zeros.

    Several runs of parts follow each other: gate and up of a packed product, each with its own padding, in
    rows of the output.
    """

    runs: tuple[tuple[Part, ...], ...]
    axis: int
    padding: int = 0


@dataclass(frozen=True)
class Summed:
    """The sum of tensors, times `factor`: biases of down."""

    sources: tuple[str, ...]
    factor: float = 1.0


Recipe: TypeAlias = Copy | Given | Same | Stacked | Summed


@dataclass(frozen=True)
class OutputTensor:
    """A tensor that will be written: its type as safetensors names it ("BF16"), and what it is made of.

    file: the path in the output folder that it has to stand in, where the format says so; "" where shards are
    cut by size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    recipe: Recipe
    file: str = ""
