"""What an analysis measured: plain figures by layer path, the same as an object and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Analysis", "AttentionScore", "ChainFacts", "Dependency", "ModelId", "Segment"]


@dataclass(frozen=True)
class ModelId:
    """What tells one model from another: hidden size, and name and width of every FFN block in order."""

    hidden_size: int
    blocks: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ChainFacts:
    """One chain: its blocks' names and intermediate sizes; bytes of the weights of each."""

    blocks: tuple[str, ...]
    intermediate_sizes: tuple[int, ...]
    weight_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """Blocks first..last (inclusive places in a chain) as one group.

    drift: sum over q of the mean of 1 - cos(x_{first+q}, x_first), from one sequential pass.
    dependency: sum of M_ij over i < j in the segment; None where M was not measured.
    sqnr_db, relative_error, cosine_distance (mean of 1 - cos): of the group's update and output against the
    sequential ones, from the segment's FFNs run on x_first.
    predicted_kl: from the local error, in nats (`fxfuse.analysis.prediction`); None where no segment was
    measured. kl and kl_error: measured at the logits with the segment alone fused, and its standard error
    (None for a single window); None where not measured.
    """

    chain: int
    first: int
    last: int
    drift: float
    sqnr_db: float
    relative_error: float
    dependency: float | None = None
    predicted_kl: float | None = None
    kl: float | None = None
    kl_error: float | None = None
    cosine_distance: float = 0.0

    @property
    def length(self) -> int:
        """How many blocks it holds."""
        return self.last - self.first + 1

    @property
    def loss(self) -> float:
        """The KL to count with: measured where it was, else predicted, else infinity."""
        known = self.kl if self.kl is not None else self.predicted_kl
        return float("inf") if known is None else known


@dataclass(frozen=True)
class AttentionScore:
    """How little an attention matters.

    cosine: mean over tokens of that of the stream before and after it (LLM-Drop, arXiv 2406.15786); kl: of
    the logits without it, in nats, with its standard error; None where not measured.
    """

    name: str
    cosine: float
    kl: float | None = None
    kl_error: float | None = None


@dataclass(frozen=True)
class Dependency:
    """M_ij = 1 - cos(h_j, h_j with i left out), h what an update adds (FFN Fusion, arXiv 2503.18908).

    `kinds` holds "ffn" or "attention" for each name; rows are left out, columns are read; 0 where j <= i.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]


@dataclass
class Analysis:
    """All that was measured of one model on one set of calibration data.

    tokens: of the fitting part, which drift, local errors and M come from; held_out_tokens: of the part that
    every KL comes from. updates: every update of the residual stream in order, as (kind, name).
    """

    model: str
    id: ModelId
    source: str
    tokens: int
    held_out_tokens: int
    seed: int
    chains: list[ChainFacts] = field(default_factory=list)
    updates: list[tuple[str, str]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    attention: list[AttentionScore] = field(default_factory=list)
    dependency: Dependency | None = None
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    seconds: float = 0.0

    def segment(self, chain: int, first: int, last: int) -> Segment:
        """The segment first..last of a chain; KeyError if there is none."""
        for each in self.segments:
            if (each.chain, each.first, each.last) == (chain, first, last):
                return each
        raise KeyError((chain, first, last))

    def to_dict(self) -> dict[str, Any]:
        """The analysis as plain data, ready for JSON."""
        return {"kind": "fxfuse analysis", "format": 1, **asdict(self)}

    def to_json(self) -> str:
        """The analysis as a JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Analysis:
        """What `to_json` wrote; `fxfuse.analysis.reading.read_analysis` reads a file.

        Raises:
            InputError: It is no analysis.
        """
        from fxfuse.analysis.reading import parse_analysis

        return parse_analysis(text)
