"""What reading a source gives, and what the reader was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxfuse.calibration.windows import Rows
from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch

__all__ = ["Found", "Wishes"]


@dataclass(frozen=True)
class Wishes:
    """The arguments of `Calibration.of`."""

    tokenizer: Any = None
    context: int = 256
    max_tokens: int | None = None
    batch_size: int = 8
    held_out: float = 0.2
    seed: int = 0

    @property
    def length(self) -> int:
        """Tokens in a window of a stream: the context, less where the tokens asked for make no two of it."""
        return self.context if self.max_tokens is None else min(self.context, self.max_tokens // 2)

    def check(self) -> None:
        """Refuse what can mean nothing.

        Raises:
            InputError: Names the argument and its value.
        """
        least = {"context": 1, "batch_size": 1, "max_tokens": 2, "seed": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InputError(f"{name} must be at least {bound}, not {value}.")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out must be a share between 0 and 1, such as 0.2, not {self.held_out}.")


@dataclass(frozen=True)
class Found:
    """Windows of one shape, arrays by input name; or, where `rows` is None, batches of differing shapes."""

    where: str
    """Names the source at the start of a sentence."""
    source: str
    """Names the source in a report."""
    rows: Rows | None = None
    batches: Sequence[Batch] = ()
    batch_size: int | None = None
    """That of the source, where it has one."""
    notes: tuple[str, ...] = ()
