"""What an export is made as, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fxfuse.errors import InputError
from fxfuse.runtime import cuda_problem
from fxfuse.sessions import Provider

__all__ = ["PRECISIONS", "Form", "GenaiReport", "precision_of"]

PRECISIONS = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 2e-1, "int8": 5e-1, "int4": 1.0}
"""What the file computes in, or holds its weights in; and how far its logits may be from the torch model's.

|file - torch| / |torch| over all logits. The bounds tell a model that is written wrongly, which is off by
about 1, from one that rounds: a float16 stream of many layers keeps two digits, bfloat16 one. What int8 and
int4 cost is a property of the model, and reported.
"""


_GENERATES = {"cpu": ("fp32", "int8", "int4"), "cuda": ("fp16", "bf16", "int8", "int4")}
"""For which types its attention with a cache and grouped heads is written."""


def precision_of(dtype: torch.dtype) -> str:
    """The key of PRECISIONS for a type of torch."""
    return {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, "fp32")


@dataclass(frozen=True)
class Form:
    """precision: a key of PRECISIONS; provider: "cpu" or "cuda"; runs: whether it can be run here."""

    precision: str
    provider: str
    runs: bool

    @classmethod
    def of(cls, precision: str | None, provider: Provider, bf16: bool) -> Form:
        """What was asked for; where nothing was, fp32 for the CPU and a GPU's half type, `bf16` or fp16.

        Raises:
            InputError: There is no such precision or provider, or none of the two together.
        """
        if provider not in ("auto", "cuda", "cpu"):
            raise InputError(f"There is no provider {provider!r}: choose auto, cuda or cpu.")
        if precision is not None and precision not in PRECISIONS:
            raise InputError(f"There is no precision {precision!r}: choose from {', '.join(PRECISIONS)}.")
        works = provider != "cpu" and cuda_problem() is None
        chosen = provider if provider != "auto" else ("cuda" if works else "cpu")
        if precision is not None and precision not in _GENERATES[chosen]:
            raise InputError(
                f"ONNX Runtime GenAI does not generate in {precision} on {chosen.upper()}: choose from "
                f"{', '.join(_GENERATES[chosen])}, or another provider."
            )
        half = "bf16" if bf16 else "fp16"
        return cls(precision or ("fp32" if chosen == "cpu" else half), chosen, chosen == "cpu" or works)


@dataclass
class GenaiReport:
    """What was written.

    layers: of the decoder; caches: of these, how many have attention. widths: of its FFNs, in order.
    relative_error: |file - torch| / |torch| of the logits, where the file could be run here.
    """

    output: str
    precision: str
    provider: str
    layers: int
    caches: int
    widths: tuple[int, ...]
    files: tuple[str, ...]
    relative_error: float | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = (
            "not run here" if self.relative_error is None else f"logits differ by {self.relative_error:.2g}"
        )
        lines = [
            f"{self.output}: {self.precision} for {self.provider}, {self.layers} layers, {self.caches} "
            f"caches, FFNs of {_ranges(self.widths)}; {told}",
            *self.notes,
        ]
        return "\n".join(lines)


def _ranges(widths: tuple[int, ...]) -> str:
    """The widths with how often each comes: 704 (12), 5632 (1)."""
    return ", ".join(f"{width} ({widths.count(width)})" for width in sorted(set(widths)))
