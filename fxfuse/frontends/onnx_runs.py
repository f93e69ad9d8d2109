"""The runs that an ONNX file is measured by: whole where it is small, piece by piece where it is not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from fxfuse.frontends.onnx_runner import Runner
from fxfuse.frontends.pieces import BOUND, Pieces
from fxfuse.inputs import Sample
from fxfuse.onnxio import total_bytes
from fxfuse.passes.onnx.extract import ModelIndex, extract
from fxfuse.passes.onnx.view import OnnxView, to_numpy, to_torch
from fxfuse.passes.records import Block, Value
from fxfuse.passes.view import root, strip
from fxfuse.sessions import Session

__all__ = ["Runs", "element_type"]

_OPEN = 32
"""Sessions over parts of a model that are kept open; each holds a copy of the weights it reads."""

Branch = Callable[[torch.Tensor, int], torch.Tensor]
"""A function of a stream and of the number of a sample, for what the branch reads besides."""


class Runs:
    """Runs `model` on `samples`, and what becomes of it; `view` was read from `model`."""

    def __init__(
        self,
        view: OnnxView,
        model: onnx.ModelProto,
        folder: Path,
        samples: Sequence[Sample],
        runner: Runner,
    ) -> None:
        self.view = view
        self.model = model
        self.folder = folder
        self.samples = samples
        self._runner = runner
        self._index = ModelIndex(model)
        self.in_pieces = total_bytes(model) > BOUND
        self._branches: dict[str, Branch] = {}
        self._parts: OrderedDict[tuple[frozenset[str], tuple[str, ...]], Session] = OrderedDict()
        self._computed: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def notes(self) -> list[str]:
        """What a reader of the figures should know of the runs."""
        notes = []
        if self._runner.upcast:
            notes.append(
                "bfloat16: ONNX Runtime's CPU provider has no kernels for it, so the figures are of a "
                "float32 copy; the file that is written stays bfloat16"
            )
        if self.in_pieces:
            notes.append(
                f"the weights ({total_bytes(self.model) / 1e9:.2g} GB) were never loaded at once: both "
                f"models ran piece by piece, {BOUND >> 20} MB of weights at a time, and each wide FFN was "
                "verified by itself on what its group reads there"
            )
        return notes

    def inside(self, own: Sequence[str], names: Sequence[str]) -> list[list[Any]]:
        """The model's outputs `own` and values from its inside, for every sample."""
        if self.in_pieces:
            return self.pieces(self._index, self.folder).run([*own, *names], self.samples)
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        model.graph.output.extend(
            onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in own
        )
        opened = self._runner.open(model)
        return [self._runner.run(opened, [*own, *names], sample) for sample in self.samples]

    def between(
        self, sample: Sample, wanted: Sequence[str], known: Mapping[Value, torch.Tensor]
    ) -> list[torch.Tensor]:
        """The values `wanted` on any sample, with `known` values of the inside taken as given."""
        feed = {
            name: to_numpy(tensor) for value, tensor in known.items() for name in self._same_stream(value)
        }
        if self.in_pieces:
            results = self.pieces(self._index, self.folder).run(wanted, [sample | feed])[0]
        else:
            opened = self._part(frozenset(feed), tuple(wanted))
            results = self._runner.run(opened, wanted, sample | feed)
        return [to_torch(each) for each in results]

    def _part(self, known: frozenset[str], wanted: tuple[str, ...]) -> Session:
        """The session that computes `wanted` from `known`; the ones used last stay open."""
        key = (known, wanted)
        if key not in self._parts:
            kinds = {name: element_type(self.view.dtype(name) or "float32") for name in known}
            self._parts[key] = self._runner.open(
                extract(self._index, kinds, list(wanted)), folder=self.folder
            )
            if len(self._parts) > _OPEN:
                self._parts.popitem(last=False)
        self._parts.move_to_end(key)
        return self._parts[key]

    def _same_stream(self, value: Value) -> set[str]:
        """The names of the stream that `value` holds, seen through casts and identities."""
        stream = root(self.view, value)
        return {str(each) for each in (value, stream, strip(self.view, stream))}

    def pieces(self, index: ModelIndex, folder: Path) -> Pieces:
        """What runs a model piece by piece; its external data lie in `folder`."""
        return Pieces(self._runner, index, folder)

    def written(self, model: onnx.ModelProto, path: Path, names: Sequence[str]) -> list[list[Any]]:
        """The outputs `names` of the model that was written to `path`, run whole, for every sample."""
        opened = self._runner.open(model, path)
        return [self._runner.run(opened, names, sample) for sample in self.samples]

    def branch(self, block: Block, x: torch.Tensor, sample: int) -> torch.Tensor:
        """The block's own branch; the last one is kept, since groups of several lengths are tried."""
        before, computed = self._computed.get((block.name, sample), (None, None))
        if computed is None or before is not x:
            if block.name not in self._branches:
                self._branches[block.name] = self.part(self._index, self.folder, block, str(block.branch))
            computed = self._branches[block.name](x, sample)
            self._computed[block.name, sample] = x, computed
        return computed

    def part(self, index: ModelIndex, folder: Path, block: Block, wanted: str) -> Branch:
        """What computes `wanted` from the block's stream."""
        names = self._same_stream(block.x)
        if self.in_pieces:
            pieces = self.pieces(index, folder)
            return lambda x, sample: to_torch(
                pieces.run([wanted], [self.samples[sample] | dict.fromkeys(names, to_numpy(x))])[0][0]
            )
        kind = self.view.dtype(block.x) or block.dtype
        opened = self._runner.open(
            extract(index, dict.fromkeys(names, element_type(kind)), [wanted]), folder=folder
        )
        reads = [each.name for each in opened.get_inputs()]

        def run(x: torch.Tensor, sample: int) -> torch.Tensor:
            feed = {name: to_numpy(x) for name in reads if name in names}
            feed |= {name: self.samples[sample][name] for name in reads if name not in names}
            return to_torch(self._runner.run(opened, [wanted], feed)[0])

        return run


def element_type(name: str) -> int:
    """ONNX's number for an element type that is spelled as in torch."""
    return int(getattr(onnx.TensorProto, {"float32": "FLOAT", "float64": "DOUBLE"}.get(name, name.upper())))
