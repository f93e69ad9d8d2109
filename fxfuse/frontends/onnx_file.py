"""ONNX files, measured and verified in ONNX Runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from fxfuse.errors import InputError, VerificationError
from fxfuse.frontends.onnx_graph import read_graph
from fxfuse.frontends.onnx_runner import Runner
from fxfuse.frontends.outputs import choose_output
from fxfuse.inputs import Sample
from fxfuse.onnxio import INLINE_LIMIT, total_bytes, write_model
from fxfuse.passes.onnx.extract import ModelIndex, extract
from fxfuse.passes.onnx.rewrite import insert, rewrite_group
from fxfuse.passes.onnx.splice import splice
from fxfuse.passes.onnx.view import OnnxView, to_torch
from fxfuse.passes.records import Block, Value
from fxfuse.passes.view import root, strip
from fxfuse.passes.weights import widen
from fxfuse.sessions import Provider

__all__ = ["OnnxFile", "FusedFile", "to_numpy", "depth", "vocab_size"]

_EXACT = {"use_tf32": "0"}
"""float32 is measured as float32, also on a GPU whose sessions would round products to TF32."""


@dataclass
class FusedFile:
    """A rewritten model as it lies in the workspace, with its groups: first block and wide branch's name."""

    model: onnx.ModelProto
    path: Path
    data: Path | None
    groups: list[tuple[Block, str]]


class OnnxFile:
    """A front end over one model file and some samples; `workspace` takes what `apply` writes."""

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path,
        samples: Sequence[Sample],
        workspace: Path,
        name: str,
        provider: Provider = "auto",
    ) -> None:
        self.model = model
        self.folder = folder
        self.samples = samples
        self.workspace = workspace
        self.name = name
        self.notes: list[str] = []
        self.view = self._view()
        self._runner = Runner(model, folder, provider)
        self._index = ModelIndex(model)
        self._branches: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {}
        self._outputs: list[list[np.ndarray[Any, Any]]] = []
        if self._runner.upcast:
            self.notes.append(
                "bfloat16: ONNX Runtime's CPU provider has no kernels for it, so the figures are of a "
                "float32 copy; the file that is written stays bfloat16"
            )

    def states(self, values: Sequence[Value]) -> list[dict[Value, torch.Tensor]]:
        """See `FrontEnd.states`."""
        names = list(dict.fromkeys(str(value) for value in values))
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        own = [output.name for output in model.graph.output]
        model.graph.output.extend(
            onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in own
        )
        opened = self._runner.open(model)
        self._outputs, states = [], []
        for sample in self.samples:
            results = self._runner.run(opened, [*own, *names], sample)
            self._outputs.append(results[: len(own)])
            states.append(
                {name: to_torch(each) for name, each in zip(names, results[len(own) :], strict=True)}
            )
        if any(state[name].numel() == 0 for state in states for name in names):
            raise InputError(
                "The measuring inputs hold no tokens: give some with --inputs (inputs=[...] in Python)."
            )
        return states  # type: ignore[return-value]

    def branch(self, block: Block, x: torch.Tensor, sample: int) -> torch.Tensor:
        """See `FrontEnd.branch`."""
        if block.name not in self._branches:
            self._branches[block.name] = self._part(self._index, self.folder, block, str(block.branch))
        return self._branches[block.name](x, sample)

    def apply(self, groups: Sequence[Sequence[Block]]) -> FusedFile:
        """See `FrontEnd.apply`."""
        view = self._view()
        writers, names = [], []
        for index, group in enumerate(groups):
            wide = {name: to_numpy(tensor) for name, tensor in widen(view, group).tensors().items()}
            writer = rewrite_group(view, group, wide, f"fxfuse.{index}")
            writers.append(writer)
            names.append((group[0], writer.branch))
        insert(view.graph, writers)
        marks = [", ".join(block.name for block in group) for group in groups]
        model = splice(self.model, view, writers, marks)
        return self._write(model, names)

    def fused_branch(self, fused: FusedFile, index: int, x: torch.Tensor, sample: int) -> torch.Tensor:
        """See `FrontEnd.fused_branch`."""
        block, name = fused.groups[index]
        with _judging():
            return self._part(ModelIndex(fused.model), fused.path.parent, block, name)(x, sample)

    def outputs(
        self, fused: FusedFile | None, hidden_size: int
    ) -> tuple[str, bool, list[torch.Tensor]] | None:
        """See `FrontEnd.outputs`."""
        names = [output.name for output in self.model.graph.output]
        first = [_tensor(each) for each in self._outputs[0]]
        results = self._outputs
        if fused is not None:
            with _judging():
                opened = self._runner.open(fused.model, fused.path)
                results = [self._runner.run(opened, names, sample) for sample in self.samples]
        chosen = choose_output(names, first, hidden_size)
        if chosen is None:
            return None
        index, logits = chosen
        values = [to_torch(each[index]) for each in results]
        # Minus infinity is how logits rule a class out.
        if fused is None and any(bool((each.isnan() | each.isposinf()).any()) for each in values):
            raise InputError(f"The original model gives NaN or infinity at its output {names[index]!r}.")
        return names[index], logits, values

    def _view(self) -> OnnxView:
        return read_graph(self.model, self.folder)

    def _write(self, model: onnx.ModelProto, groups: list[tuple[Block, str]]) -> FusedFile:
        external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in self.model.graph.initializer)
        data = self.workspace / f"{self.name}.data" if external or total_bytes(model) > INLINE_LIMIT else None
        path = self.workspace / self.name
        return FusedFile(write_model(model, self.folder, path, data), path, data, groups)

    def _part(
        self, index: ModelIndex, folder: Path, block: Block, wanted: str
    ) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """A function of the block's stream that computes `wanted` in ONNX Runtime."""
        stream = root(self.view, block.x)
        names = {str(each) for each in (block.x, stream, strip(self.view, stream))}
        kind = self.view.dtype(block.x) or block.dtype
        cuts = dict.fromkeys(names, _element_type(kind))
        opened = self._runner.open(extract(index, cuts, [wanted]), folder=folder)
        reads = [each.name for each in opened.get_inputs()]

        def run(x: torch.Tensor, sample: int) -> torch.Tensor:
            feed = {name: to_numpy(x) for name in reads if name in names}
            feed |= {name: self.samples[sample][name] for name in reads if name not in names}
            return to_torch(self._runner.run(opened, [wanted], feed)[0])

        return run


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A tensor as an array; bfloat16 goes by its bits."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
        return tensor.view(torch.int16).numpy().view(kind)
    return tensor.numpy()


def depth(model: onnx.ModelProto) -> int:
    """Nodes on the longest path through the main graph."""
    longest: dict[str, int] = {}
    for node in model.graph.node:
        own = 1 + max((longest.get(name, 0) for name in node.input), default=0)
        longest.update(dict.fromkeys(node.output, own))
    return max(longest.values(), default=0)


def vocab_size(model: onnx.ModelProto) -> int | None:
    """The rows of the embedding table that a graph input is looked up in; None where the graph shows none."""
    sizes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    source = {value.name: value.name for value in model.graph.input}
    rows = []
    for node in model.graph.node:
        if (
            node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze")
            and source.keys() & node.input[:1]
        ):
            source[node.output[0]] = source[node.input[0]]
        if (
            node.op_type == "Gather"
            and source.keys() & node.input[1:]
            and len(sizes.get(node.input[0], ())) == 2
        ):
            rows.append((source[node.input[1]], int(sizes[node.input[0]][0])))
    tokens = [size for name, size in rows if "pos" not in name and "type" not in name]
    return min(tokens) if tokens else None


@contextlib.contextmanager
def _judging() -> Iterator[None]:
    """What fails here is fxfuse's own output, no input."""
    try:
        yield
    except InputError as error:
        raise VerificationError(
            f"The rewritten model does not run, so it was not written: {error}"
        ) from error


def _tensor(value: Any) -> object:
    return to_torch(value) if isinstance(value, np.ndarray) and value.dtype.kind in "fV" else value


def _element_type(name: str) -> int:
    return int(getattr(onnx.TensorProto, {"float32": "FLOAT", "float64": "DOUBLE"}.get(name, name.upper())))
