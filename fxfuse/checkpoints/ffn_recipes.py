"""How the norm and the products of one FFN are made, of one block's or of several.

    gate, up    [sum of widths + padding, hidden]   blocks below one another, each W_i diag(g_i)
    down        [hidden, sum of widths + padding]   blocks side by side
    norm        [hidden]                            the gain that all blocks share, or ones

A wide FFN of such weights is the sum of the blocks' FFNs on the same input (arXiv 2503.18908, theorem 3.1).
Biases of gate and up are stacked as their rows are, those of down are summed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxfuse.checkpoints.records import (
    Checkpoint,
    Copy,
    OutputLayer,
    OutputTensor,
    Part,
    Recipe,
    Same,
    Stacked,
    Summed,
)

__all__ = ["FFNWriter"]

_Rows = tuple[str, "tuple[int, int] | None"]
"""A stored product without its ending, and which of its rows; None: all."""


@dataclass(frozen=True)
class FFNWriter:
    """Recipes for the FFNs of one checkpoint.

    unpack: write gate and up apart where they are packed. factor: of what an FFN adds to the stream.
    """

    checkpoint: Checkpoint
    unpack: bool = False
    factor: float = 1.0

    def tensors(self, layer: OutputLayer, file: str = "") -> Iterator[OutputTensor]:
        """Norm, gate, up, down; `file` is where they have to stand."""
        for name, dtype, shape, recipe in self._all(layer):
            yield OutputTensor(
                f"{self.checkpoint.family.layers}.{layer.number}.{name}", dtype, shape, recipe, file
            )

    def _all(self, layer: OutputLayer) -> Iterator[tuple[str, str, tuple[int, ...], Recipe]]:
        family, stored = self.checkpoint.family, self.checkpoint.tensors
        hidden, width = self.checkpoint.hidden_size, layer.intermediate_size
        norm = self._norm(layer.sources[0])
        unit = Same(1.0 - family.gain_offset)
        yield f"{family.norm}.weight", stored[norm].dtype, (hidden,), Copy(norm) if layer.keeps_gain else unit
        for name, runs in self._stacks(layer):
            dtype, rows = stored[f"{runs[0][0][0]}.weight"].dtype, width * len(runs)
            yield f"{name}.weight", dtype, (rows, hidden), self._stacked(layer, runs)
            if f"{runs[0][0][0]}.bias" in stored:
                yield f"{name}.bias", dtype, (rows,), self._biases(layer, runs)
        downs = [f"{self.checkpoint.prefix(number)}.{family.down}" for number in layer.sources]
        dtype = stored[f"{downs[0]}.weight"].dtype
        yield f"{family.down}.weight", dtype, (hidden, width), self._down(layer, downs)
        if f"{downs[0]}.bias" in stored:
            biases = tuple(f"{name}.bias" for name in downs)
            yield f"{family.down}.bias", dtype, (hidden,), self._summed(biases)

    def _norm(self, number: int) -> str:
        return f"{self.checkpoint.prefix(number)}.{self.checkpoint.family.norm}.weight"

    def _stacks(self, layer: OutputLayer) -> Iterator[tuple[str, list[list[_Rows]]]]:
        """What is written of gate and up: a name, and the runs of rows that are its rows."""
        halves = [[self._half(number, half) for number in layer.sources] for half in (0, 1)]
        family = self.checkpoint.family
        if family.packed is not None and not self.unpack:
            yield family.packed, halves
        else:
            yield family.gate or "mlp.gate_proj", [halves[0]]
            yield family.up or "mlp.up_proj", [halves[1]]

    def _half(self, number: int, half: int) -> _Rows:
        """Gate (0) or up (1) of one block."""
        family, prefix = self.checkpoint.family, self.checkpoint.prefix(number)
        if family.packed is None:
            return f"{prefix}.{family.ffn_weights[half]}", None
        width = self.checkpoint.layers[number].intermediate_size
        return f"{prefix}.{family.packed}", (half * width, (half + 1) * width)

    def _stacked(self, layer: OutputLayer, runs: list[list[_Rows]]) -> Recipe:
        """Rows of gate and up, with gains where the norm does not keep them."""
        as_is = not layer.fused and not layer.padding
        if as_is and len(runs) == 2:
            return Copy(f"{runs[0][0][0]}.weight")
        if as_is:
            name, rows = runs[0][0]
            return Copy(f"{name}.weight", rows)
        gains = [None if layer.keeps_gain else self._norm(number) for number in layer.sources]
        offset = 0.0 if layer.keeps_gain else self.checkpoint.family.gain_offset
        parts = (
            tuple(
                Part(f"{name}.weight", rows, gain, offset)
                for (name, rows), gain in zip(run, gains, strict=True)
            )
            for run in runs
        )
        return Stacked(tuple(parts), axis=0, padding=layer.padding)

    def _biases(self, layer: OutputLayer, runs: list[list[_Rows]]) -> Recipe:
        if not layer.fused and not layer.padding and len(runs) == 1:
            name, rows = runs[0][0]
            return Copy(f"{name}.bias", rows)
        parts = (tuple(Part(f"{name}.bias", rows) for name, rows in run) for run in runs)
        return Stacked(tuple(parts), axis=0, padding=layer.padding)

    def _down(self, layer: OutputLayer, names: list[str]) -> Recipe:
        if not layer.fused and not layer.padding:
            return Copy(f"{names[0]}.weight", factor=self.factor)
        parts = tuple(Part(f"{name}.weight", factor=self.factor) for name in names)
        return Stacked((parts,), axis=1, padding=layer.padding)

    def _summed(self, names: tuple[str, ...]) -> Recipe:
        return Summed(names, self.factor) if len(names) > 1 else Copy(names[0], factor=self.factor)
