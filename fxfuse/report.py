"""What was found, what it costs and why not more: the same facts as an object, as JSON and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from fxfuse.passes.records import Block, Found, Miss

if TYPE_CHECKING:
    from fxfuse.quantisation.records import Quantisation
    from fxfuse.recovery.records import GroupRecovery  # which waits for torch

__all__ = ["BlockReport", "ChainReport", "GroupReport", "GroupTiming", "Size", "Report", "WholeTiming"]


@dataclass(frozen=True)
class BlockReport:
    """One block, by the layer path a user knows."""

    name: str
    norm: str
    activation: str
    gated: bool
    hidden_size: int
    intermediate_size: int

    @classmethod
    def of(cls, block: Block) -> BlockReport:
        """The facts of a block that was found."""
        norm = {"rms": "RMSNorm", "layer": "LayerNorm"}[block.norm.kind]
        activation = block.ffn.activation.name
        return cls(block.name, norm, activation, block.gated, block.hidden_size, block.intermediate_size)


@dataclass(frozen=True)
class ChainReport:
    """A chain that is legal to fuse, before any budget."""

    length: int
    blocks: tuple[BlockReport, ...]


@dataclass(frozen=True)
class GroupTiming:
    """What the blocks of a group take on the target, in milliseconds by token count, norms and adds included.

    `fused_ms` is of the best form that was found.
    """

    form: str
    sequential_ms: dict[int, float]
    fused_ms: dict[int, float]


@dataclass(frozen=True)
class WholeTiming:
    """One call of the whole model on the target, in ms; ratio = original / fused, round by round."""

    tokens: int
    original_ms: float
    fused_ms: float
    ratio: float


@dataclass(frozen=True)
class GroupReport:
    """A group that was fused: names of its blocks, the width of its FFN and what fusing it costs.

    quantised: what was done with quantised weights, None where there are none. requantisation_error:
    |W' - W| / |W| of those that were quantised again; the loss is then of what was written, the rewrite error
    that against W'. recovery: what was tried on calibration data, None where nothing was; the loss is then of
    what was written too, with the groups before it fused. timing: None where no target was given.
    form: how the FFN is written, None where it is as written without a target.
    """

    blocks: tuple[str, ...]
    intermediate_size: int
    rewrite_error: float
    sqnr_db: float
    cosine: float
    relative_error: float
    rounding_error: float
    quantised: str | None = None
    requantisation_error: float | None = None
    recovery: GroupRecovery | None = None
    timing: GroupTiming | None = None
    form: str | None = None


@dataclass(frozen=True)
class Size:
    """One model's extent; depth counts nodes on the longest path, file_size is in bytes (None if no file)."""

    nodes: int
    ffn_blocks: int
    depth: int
    parameters: int
    file_size: int | None = None


@dataclass
class Report:
    """All that one fusion found and measured. `str(report)` is the table, `to_json()` the file.

    ffn_blocks counts the original model's, those that stand alone included; seconds are of the whole, phases
    of each step. groups and end_to_end tell what fusing costs, quantisation what both do together.
    """

    model: str
    output: str | None = None
    inputs: str = "given"
    ffn_blocks: int = 0
    chains: list[ChainReport] = field(default_factory=list)
    groups: list[GroupReport] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    end_to_end: dict[str, Any] = field(default_factory=dict)
    quantisation: Quantisation | None = None
    latency: list[WholeTiming] = field(default_factory=list)
    before: Size | None = None
    after: Size | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    error: str | None = None

    @property
    def fused_blocks(self) -> int:
        """How many blocks were fused, over all groups."""
        return sum(len(group.blocks) for group in self.groups)

    @property
    def ffn_blocks_left(self) -> int:
        """How many FFN blocks the fused model has."""
        return self.ffn_blocks - self.fused_blocks + len(self.groups)

    def add_found(self, found: Found) -> None:
        """Take over what the matcher saw."""
        self.chains = [ChainReport(len(c.blocks), tuple(map(BlockReport.of, c.blocks))) for c in found.chains]
        self.ffn_blocks = sum(chain.length for chain in self.chains) + len(found.singles)
        self.misses = list(found.misses)
        told = {miss.where for miss in found.misses}
        alone = (block for block in found.singles if block.made_of is None and block.name not in told)
        self.misses += [Miss(block.name, _ALONE) for block in alone]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """The report as a JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def summary(self) -> str:
        """One line, for a log."""
        chains = ", ".join(str(chain.length) for chain in self.chains) or "none"
        if not self.groups:
            return f"fxfuse: nothing fused (chains found: {chains}; {len(self.misses)} misses)"
        worst = min(group.sqnr_db for group in self.groups)
        sizes = "+".join(str(len(group.blocks)) for group in self.groups)
        return (
            f"fxfuse: fused {self.fused_blocks} FFN blocks into {len(self.groups)} ({sizes}), "
            f"chains found: {chains}, least SQNR {worst:.1f} dB"
        )

    def __str__(self) -> str:
        """The table."""
        from fxfuse.table import render

        return render(self)


_ALONE = "the block stands alone: attention or something else stands between it and every other FFN block"
