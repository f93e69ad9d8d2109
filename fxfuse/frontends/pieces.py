"""Run an ONNX graph piece by piece, so that its weights are never loaded at once.

    [nodes that read 128 MB of weights] -> values -> [the next 128 MB] -> values -> ...

Each piece is a model and a session of its own, closed before the next one opens; of the values in between,
those that a later piece reads are kept. On the CPU the weights of a session stay in their file, mapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fxfuse.external import size
from fxfuse.frontends.onnx_runner import Runner
from fxfuse.onnxio import read_tensor
from fxfuse.passes.onnx.extract import ModelIndex, Piece, divide, piece_model

__all__ = ["BOUND", "Pieces"]

BOUND = 1 << 27
"""Bytes of weights that a piece reads, unless one node alone reads more; a smaller model is run whole."""


class Pieces:
    """Runs any part of one model; its external data lie in `folder`."""

    def __init__(self, runner: Runner, index: ModelIndex, folder: Path) -> None:
        self.runner = runner
        self.index = index
        self.folder = folder

    def run(self, wanted: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        """`wanted` for every sample: the graph's inputs, and other values that are known already.

        Raises:
            InputError: ONNX Runtime cannot load the model, or it fails on a sample.
        """
        known = [{name: self.runner.typed(value) for name, value in sample.items()} for sample in samples]
        given = known[0].keys() if known else ()
        pieces = divide(self.index, given, wanted, BOUND, size)
        last_read = {name: place for place, piece in enumerate(pieces) for name in piece.reads}
        for place, piece in enumerate(pieces):
            self._run_piece(piece, known)
            for name in piece.reads:
                if last_read[name] == place and name not in wanted:
                    for values in known:
                        del values[name]
        return [[self._value(values, name) for name in wanted] for values in known]

    def _run_piece(self, piece: Piece, known: Sequence[dict[str, Any]]) -> None:
        """Compute what the piece gives, for every sample, into `known`."""
        if not known:
            return
        inputs = self.index.input
        kinds = {name: _kind(name, known[0][name]) for name in piece.reads if name not in inputs}
        opened = self.runner.open(piece_model(self.index, piece, kinds), folder=self.folder, mapped=True)
        for values in known:
            results = self.runner.run(opened, piece.gives, values)
            values.update(zip(piece.gives, results, strict=True))

    def _value(self, values: Mapping[str, Any], name: str) -> Any:
        """A value that was computed, or a stored tensor that the graph returns."""
        return values[name] if name in values else read_tensor(self.index.initializer[name], self.folder)


def _kind(name: str, value: Any) -> onnx.ValueInfoProto:
    """The type of a value that a piece takes from an earlier one: a tensor, or a list of tensors."""
    first = value[0] if isinstance(value, list) and value else value
    kind = onnx.TensorProto.FLOAT  # an empty list does not tell
    if not isinstance(first, list):
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(first).dtype)
    if isinstance(value, list):
        return onnx.helper.make_tensor_sequence_value_info(name, kind, None)
    return onnx.helper.make_tensor_value_info(name, kind, None)
