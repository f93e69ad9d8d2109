"""What the speed of a chain depends on: sizes, types and operators, not the numbers in its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from fxfuse.passes.quantised.storage import form_of
from fxfuse.passes.records import Block, Linear
from fxfuse.passes.view import View

__all__ = ["NORM_OPERATORS", "Shape", "shape_of"]

NORM_OPERATORS = ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")


@dataclass(frozen=True)
class Shape:
    """A chain of FFN blocks.

    norm: "rms" or "layer". operator: the ONNX operator that it is, "" where it is written out. packed: gate
    and up are one product in the model. weights: "float"; "int8", which ONNX Runtime's dynamic quantisation
    writes, or "int8 wide" where it comes after fusing, which leaves one down product; or "nbits
    BITS/BLOCK/LEVEL", MatMulNBits.
    """

    hidden: int
    widths: tuple[int, ...]
    norm: str = "rms"
    operator: str = ""
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    packed: bool = False
    dtype: str = "float32"
    weights: str = "float"

    @property
    def width(self) -> int:
        """The width of the chain as one wide FFN."""
        return sum(self.widths)

    @property
    def parameters(self) -> int:
        """How many numbers its weights hold, norms and biases apart."""
        return self.hidden * self.width * (3 if self.gated else 2)

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, about."""
        size = {"float32": 4.0, "float64": 8.0, "float16": 2.0, "bfloat16": 2.0}.get(self.dtype, 4.0)
        if self.weights.startswith("int8"):
            size = 1.0
        elif self.weights.startswith("nbits"):
            bits, block, _ = self.nbits
            size = bits / 8 + size / block
        return int(self.parameters * size)

    @property
    def nbits(self) -> tuple[int, int, int]:
        """Bits, block size and accuracy level of MatMulNBits."""
        bits, block, level = map(int, self.weights.split(" ")[1].split("/"))
        return bits, block, level

    def __str__(self) -> str:
        """All of it in one line: the part of a cache's key that tells shapes apart."""
        runs = [(width, len(list(same))) for width, same in groupby(self.widths)]
        widths = "+".join(f"{count}x{width}" if count > 1 else str(width) for width, count in runs)
        gated = ("packed " if self.packed else "gated ") if self.gated else ""
        bias = " bias" if self.bias else ""
        norm = f"{self.norm} {self.operator}".strip()
        return f"{self.hidden}: {widths} {gated}{self.activation}, {norm}{bias}, {self.dtype} {self.weights}"


def shape_of(view: View, blocks: Sequence[Block]) -> Shape | str:
    """The shape of consecutive blocks; or why chains like them are not timed, in a clause."""
    first = blocks[0]
    weights = _weights(view, first)
    if weights is None:
        return "its weights are quantised in a way that is not timed"
    operator = ""
    if first.norm.operator is not None:
        operator = _operator(view, first)
    gate, up = first.ffn.gate, first.ffn.up
    return Shape(
        first.hidden_size,
        tuple(block.intermediate_size for block in blocks),
        first.norm.kind,
        operator,
        first.ffn.activation.name,
        first.gated,
        any(_has_bias(block) for block in blocks),
        up is not None and gate.rows is not None and gate.weight == up.weight,
        first.dtype,
        weights,
    )


def _operator(view: View, first: Block) -> str:
    """The norm's operator as ONNX calls it; in torch it makes no difference."""
    node = getattr(view, "tensors", {}).get(str(first.norm.operator))
    name = node.inputs[0].op if node is not None and node.inputs else ""
    return name if name in NORM_OPERATORS else NORM_OPERATORS[first.norm.kind == "rms"]


def _has_bias(block: Block) -> bool:
    linears = (block.ffn.gate, block.ffn.up, block.ffn.down)
    return any(step.kind == "add" for each in linears if each is not None for step in each.steps)


def _weights(view: View, block: Block) -> str | None:
    linears = [each for each in (block.ffn.gate, block.ffn.up, block.ffn.down) if each is not None]
    names = {_storage(view, each) for each in linears}
    return names.pop() if len(names) == 1 else None


def _storage(view: View, linear: Linear) -> str | None:
    form = form_of(view, linear)
    if form is None:
        return "float"
    if form.operator == "MatMulNBits" and form.block:
        return f"nbits {form.kind[4:]}/{form.block}/{form.level or 0}"
    return "int8" if form.operator in ("MatMulInteger", "DynamicQuantizeMatMul") else None
