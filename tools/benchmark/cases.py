"""What is timed: models at numbers of tokens in a type, in the order of importance, and how."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LENGTH", "QUICK", "Case", "Settings", "Shape", "cases_on", "shape_of"]


@dataclass(frozen=True)
class Shape:
    """The FFN blocks of a model: hidden size, intermediate size and how many follow each other."""

    hidden: int
    width: int
    blocks: int

    @property
    def weights(self) -> int:
        """How many weights the products of all blocks hold together."""
        return 3 * self.hidden * self.width * self.blocks


@dataclass(frozen=True)
class Case:
    """A model by name, at a number of tokens in one sequence; written "demo/32" or "chain-1024/1/float16"."""

    model: str
    tokens: int
    dtype: str = "float32"

    def __str__(self) -> str:
        kind = "" if self.dtype == "float32" else f"/{self.dtype}"
        return f"{self.model}/{self.tokens}{kind}"


@dataclass(frozen=True)
class Settings:
    """How to measure: `seconds` a round at least; `pause` seconds after each, until the threads sleep.

    `rounds` are those of each of the `seatings`: how often contestants are seated in new processes.

    `autotuned`: the numbers of tokens at which inductor's max-autotune is measured, as it compiles for long.
    `patience`, `writing`: seconds that one request of a contestant, and a model's files, may take.
    `chosen`: whether the form that fxfuse chooses by timing takes part. `checks`: answers are what counts,
    so more ways to run take part. `verbose`: what the processes write to stderr is shown.
    `only`: a regular expression that a contestant's name has to match.
    """

    device: str = "cpu"
    threads: int = 1
    rounds: int = 5
    seatings: int = 1
    seconds: float = 0.12
    pause: float = 0.05
    autotuned: tuple[int, ...] = (1,)
    patience: float = 300.0
    chosen: bool = True
    checks: bool = False
    writing: float = 1800.0
    verbose: bool = False
    only: str = ""


WIDTHS = {256: 704, 1024: 2816, 2048: 5632, 4096: 14336, 8192: 28672}
"""Intermediate size of a bare chain by hidden size."""

SHARDS = {8192: 3584, 16384: 6656}
"""Intermediate size that one of 8 tensor-parallel ranks holds, by hidden size."""

LENGTH = 8
"""Blocks of a chain whose name does not say."""

DECODERS = {"decoder-1b": (2048, 8192, 16), "decoder-8b": (4096, 14336, 32)}
"""Random-weight decoders: hidden size, intermediate size, layers; 12 FFNs follow each other."""

DECODER_RUN = 12

_NAME = re.compile(r"(chain|shard)-(\d+)(?:-(\d+))?(?:x(\d+))?")


def shape_of(model: str) -> Shape | None:
    """The FFNs of a bare chain by its name, as in "chain-256", "chain-4096-11008", "shard-8192x4".

    None for a whole model.
    """
    found = _NAME.fullmatch(model)
    if found is None:
        return None
    kind, hidden, width, blocks = found.groups()
    known = WIDTHS if kind == "chain" else SHARDS
    return Shape(int(hidden), int(width or known[int(hidden)]), int(blocks or LENGTH))


QUICK = (Case("chain-256", 1), Case("chain-256", 32))

_FEW, _SHORT, _LONG = (1, 32), (1, 8, 32, 128), (1, 8, 32, 128, 2048)

_CPU: Sequence[tuple[str, tuple[int, ...]]] = (
    ("chain-256", _SHORT), ("chain-1024", _SHORT), ("chain-2048", _SHORT), ("demo", (1, 32, 256)),
    ("chain-256x2", _FEW), ("chain-256x4", _FEW), ("chain-1024x2", _FEW), ("chain-1024x4", _FEW),
    ("chain-2048x2", _FEW), ("chain-2048x4", _FEW),
)  # fmt: skip

_CUDA: Sequence[tuple[str, str, tuple[int, ...]]] = (
    ("chain-1024", "float16", _LONG), ("chain-2048", "float16", _LONG), ("chain-4096", "float16", _LONG),
    ("shard-8192", "float16", _LONG), ("decoder-1b", "float16", (1, 128)), ("chain-1024", "bfloat16", _LONG),
    ("chain-1024", "float32", (1,)),
    ("chain-2048", "bfloat16", _LONG), ("chain-4096", "bfloat16", _LONG), ("shard-16384", "float16", _LONG),
    ("chain-1024x2", "float16", _FEW), ("chain-1024x4", "float16", _FEW), ("chain-1024x12", "float16", _FEW),
    ("demo", "float16", (1, 32, 256)), ("chain-2048x2", "float16", _FEW), ("chain-2048x4", "float16", _FEW),
    ("chain-2048x12", "float16", _FEW), ("chain-8192", "bfloat16", (1, 32, 2048)),
    ("decoder-8b", "bfloat16", (1, 128)), ("decoder-1b", "bfloat16", (1, 128)),
    ("chain-4096x2", "float16", _FEW), ("chain-4096x12", "float16", _FEW),
    ("chain-4096-11008", "float16", _LONG), ("shard-8192", "bfloat16", _LONG),
    ("shard-16384", "bfloat16", _LONG), ("chain-8192", "float16", (1, 32, 2048)),
)  # fmt: skip


def cases_on(device: str, *, large: bool = False) -> list[Case]:
    """All cases of a device, the most important first; `large` adds the 1B-shaped decoder on a CPU.

    Those of one model stand together: its contestants are started once.
    """
    if device == "cuda":
        return [Case(model, tokens, dtype) for model, dtype, lengths in _CUDA for tokens in lengths]
    more = [("decoder-1b", (1, 128))] if large else []
    return [Case(model, tokens) for model, lengths in [*_CPU, *more] for tokens in lengths]
