"""The forms in which one wide FFN can be written: the same function, at another speed.

    two         gate and up products        packed      one product of both, then a split
    two/4       the width in four slices, each with products of its own, then one sum
    two, SimplifiedLayerNormalization       the norm as that operator of ONNX Runtime
    sums        torch, one token: products as (weight * x).sum(-1), which inductor writes as loops of its own
    kernel      torch, one token: norm, gate, up and activation in one kernel, down in another

Which is fastest depends on the device, the runtime, the sizes and the tokens: it has to be measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fxfuse.passes.records import Block

__all__ = ["NORMS", "ONE_TOKEN", "RMS_OPSET", "Form", "legal_forms"]

PRODUCTS = ("two", "packed", "sums", "kernel")
ONE_TOKEN = ("sums", "kernel")
"""Products of torch graphs that are compiled for one token."""
NORMS = ("own", "SimplifiedLayerNormalization", "RMSNormalization")
RMS_OPSET = 23
"""The first opset with RMSNormalization."""

_STEP = 64  # channels: slices begin at multiples of it, where the width has enough of them
_EXAMPLES = ("two", "packed/2", "two, SimplifiedLayerNormalization")
_TEXT = re.compile(r"(\w+)(?:/([1-9]\d*))?(?:, (\w+))?")


@dataclass(frozen=True)
class Form:
    """How a wide FFN is written. An FFN without an up product has one product however it is packed."""

    products: str = "two"
    slices: int = 1
    norm: str = "own"

    def __post_init__(self) -> None:
        if self.products not in PRODUCTS:
            raise ValueError(
                f"The products of a form are one of {', '.join(PRODUCTS)}, not {self.products!r}."
            )
        if self.slices < 1:
            raise ValueError(f"A form has one slice or more, not {self.slices}.")
        if self.products in ONE_TOKEN and (self.slices, self.norm) != (1, "own"):
            raise ValueError(
                f"The form {self.products} takes a wide FFN whole, with its own norm: write it without more."
            )
        if self.norm not in NORMS:
            raise ValueError(f"The norm of a form is one of {', '.join(NORMS)}, not {self.norm!r}.")

    def __str__(self) -> str:
        slices = f"/{self.slices}" if self.slices > 1 else ""
        return f"{self.products}{slices}" + (f", {self.norm}" if self.norm != "own" else "")

    @classmethod
    def parse(cls, text: str) -> Form:
        """The form that `str` writes so.

        Raises:
            ValueError: No form is written so.
        """
        found = _TEXT.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"A form is written as in {', '.join(map(repr, _EXAMPLES))}, not as {text!r}.")
        products, slices, norm = found.groups()
        return cls(products, int(slices or 1), norm or "own")

    def packed(self, gated: bool) -> bool:
        """Whether gate and up are one product."""
        return gated and self.products == "packed"

    def spans(self, width: int) -> list[tuple[int, int]]:
        """Start and stop of each slice of `width` channels: nearly equal, never empty."""
        step = _STEP if width >= _STEP * self.slices else 1
        count, units = min(self.slices, width), width // step
        ends = [step * (units * part // count) for part in range(1, count)] + [width]
        return list(zip([0, *ends], ends, strict=False))

    def suffixes(self, width: int) -> list[str]:
        """What follows the names of each slice's products, where the slices are stored apart."""
        count = len(self.spans(width))
        return [f"_{index}" for index in range(count)] if count > 1 else [""]


def legal_forms(blocks: Sequence[Block], runtime: str, opset: int | None = None) -> list[Form]:
    """The forms worth timing for a group, the default first; `opset` is the ONNX model's where it is known.

    `runtime` is "onnxruntime", or any other name for torch. A norm of several nodes stays so in the default
    form alone: ONNX Runtime finds no norm to join in one without its gain.
    """
    slices = [Form(slices=count) for count in dict.fromkeys((2, len(blocks))) if count > 1]
    packed = [Form("packed"), Form("packed", 2)] if all(block.gated for block in blocks) else []
    norm = blocks[0].norm
    if runtime != "onnxruntime" or norm.kind != "rms" or norm.unit is None:
        return [Form(), *packed, *slices]
    operator = "SimplifiedLayerNormalization"
    standard = [Form(norm="RMSNormalization")] if opset is not None and opset >= RMS_OPSET else []
    return [Form(), *(replace(form, norm=operator) for form in (Form(), *packed, *slices)), *standard]
