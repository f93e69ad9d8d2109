"""What a user asks for: the kind of weights, and which products stay as they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fxfuse.errors import InputError

__all__ = ["KINDS", "Quantise"]

KINDS = ("int8", "int4")


@dataclass(frozen=True)
class Quantise:
    """How the weights of matrix products are stored.

    kind: "int8", one scale for each output and inputs rounded to 8 bits in every call; "int4", one scale
    for every `block_size` weights, symmetric. exclude: a regular expression, searched for in the layer
    paths and names of products and of their weights; what matches stays float. accuracy_level: of int4
    products in ONNX Runtime; at 4 their inputs are rounded to 8 bits, at 0 they are not.
    """

    kind: str
    exclude: str | None = None
    block_size: int = 32
    accuracy_level: int = 4

    def __post_init__(self) -> None:
        """Check every value, so that a mistake is told before any work is done."""
        if self.kind not in KINDS:
            raise InputError(f"quantize must be one of {', '.join(KINDS)} or None, not {self.kind!r}.")
        if self.block_size not in (16, 32, 64, 128, 256):
            raise InputError(f"block_size must be 16, 32, 64, 128 or 256, not {self.block_size!r}.")
        if self.accuracy_level not in range(5):
            raise InputError(
                f"accuracy_level must be a whole number from 0 to 4, not {self.accuracy_level!r}."
            )
        if self.exclude is not None:
            if not isinstance(self.exclude, str):
                raise InputError(
                    f"quantize_exclude must be a regular expression as text or None, not {self.exclude!r}."
                )
            try:
                re.compile(self.exclude)
            except re.error as error:
                raise InputError(
                    f"quantize_exclude={self.exclude!r} is not a regular expression: {error}."
                ) from None

    @classmethod
    def of(cls, quantize: Any, exclude: Any = None) -> Quantise | None:
        """From the keywords `quantize` and `quantize_exclude`; None where nothing is asked for.

        Raises:
            InputError: A value makes no sense, or there is something to leave out of nothing.
        """
        if quantize is None:
            if exclude is not None:
                raise InputError(
                    "quantize_exclude names products that stay float: say what others become, int8 or int4."
                )
            return None
        if isinstance(quantize, Quantise):
            return quantize
        return cls(quantize, exclude)

    def leaves_out(self, *names: str) -> str | None:
        """Why a product of these names stays float; None if it does not."""
        if self.exclude is not None and any(re.search(self.exclude, name) for name in names):
            return f"left out: --quantize-exclude {self.exclude!r} matches it"
        return None
