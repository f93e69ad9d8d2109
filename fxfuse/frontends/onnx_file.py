"""ONNX files, measured and verified in ONNX Runtime."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from fxfuse._version import __version__
from fxfuse.datafile import DataFile
from fxfuse.errors import InputError, VerificationError
from fxfuse.external import size, take_in
from fxfuse.frontends.once import Once
from fxfuse.frontends.onnx_graph import read_graph
from fxfuse.frontends.onnx_runner import Runner
from fxfuse.frontends.onnx_runs import Runs, element_type
from fxfuse.frontends.outputs import choose_output
from fxfuse.frontends.protocol import Batch
from fxfuse.inputs import Sample, specs_of
from fxfuse.onnxio import INLINE_LIMIT, total_bytes, write_model
from fxfuse.passes.chains import find_chains
from fxfuse.passes.forms import ONE_TOKEN, RMS_OPSET, Form
from fxfuse.passes.onnx.contract import contract
from fxfuse.passes.onnx.expand import expand
from fxfuse.passes.onnx.extract import ModelIndex
from fxfuse.passes.onnx.inline import walk
from fxfuse.passes.onnx.provenance import group_of, next_number, read_provenance, record
from fxfuse.passes.onnx.reserved import free_reserved
from fxfuse.passes.onnx.rewrite import insert, rewrite_group
from fxfuse.passes.onnx.splice import splice
from fxfuse.passes.onnx.stacked import rewrite_quantised
from fxfuse.passes.onnx.view import OnnxView, to_numpy, to_torch
from fxfuse.passes.onnx.writer import Writer
from fxfuse.passes.quantised.groups import stack
from fxfuse.passes.quantised.objections import is_quantised
from fxfuse.passes.records import Block, Value
from fxfuse.passes.storing import copied, written
from fxfuse.passes.weights import Wide, unread
from fxfuse.sessions import Provider

__all__ = ["OnnxFile", "FusedFile", "depth", "vocab_size"]

_LARGE = 1 << 20
"""Bytes from which on a weight that stays as it is gets copied while others are folded."""


@dataclass
class FusedFile:
    """A rewritten model as it lies in the workspace, with its groups: first block and wide branch's name.

    `forms` are those that were written, one for each group.
    """

    model: onnx.ModelProto
    path: Path
    groups: list[tuple[Block, str]]
    forms: list[Form] = field(default_factory=list)

    @functools.cached_property
    def index(self) -> ModelIndex:
        """Its nodes, those that hide several written out."""
        return ModelIndex(expand(self.model).model)


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
        *,
        first: int = 0,
        reference: list[list[np.ndarray[Any, Any]]] | None = None,
    ) -> None:
        """Number the groups from `first`, or above; compare outputs with `reference`, or with the model's."""
        self._original, self._expanded = model, expand(model)
        self.model = model = self._expanded.model
        self.folder = folder
        self.samples = samples
        self.workspace = workspace
        self.name = name
        self.notes: list[str] = read_provenance(model)[1]
        self.view = self._view()
        self._runner = Runner(model, folder, provider, workspace)
        self._runs = Runs(self.view, model, folder, samples, self._runner)
        self._outputs: list[list[np.ndarray[Any, Any]]] = []
        self._completed: tuple[Batch, Sample] | None = None
        self._ran: tuple[FusedFile, Once] | None = None
        self._first, self._reference = first, reference
        self.notes += self._runs.notes()

    def states(self, values: Sequence[Value]) -> list[dict[Value, torch.Tensor]]:
        """See `FrontEnd.states`."""
        names = list(dict.fromkeys(str(value) for value in values))
        own = [output.name for output in self.model.graph.output]
        self._outputs, states = self._reference or [], []
        for results in self._runs.inside(own, names):
            self._outputs += [] if self._reference else [results[: len(own)]]
            states.append(
                {name: to_torch(each) for name, each in zip(names, results[len(own) :], strict=True)}
            )
        if any(state[name].numel() == 0 for state in states for name in names):
            raise InputError(
                "The measuring inputs hold no tokens: give some with --inputs (inputs=[...] in Python)."
            )
        return states  # type: ignore[return-value]

    def run(
        self, batch: Batch, wanted: Sequence[Value], known: Mapping[Value, torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """See `Runnable.run`."""
        return self._runs.between(self._sample(batch), [str(value) for value in wanted], known or {})

    def _sample(self, batch: Batch) -> Sample:
        """A batch with every input that the model reads; the last one is kept, since it is run many times."""
        from fxfuse.calibration.complete import complete  # which knows front ends' batches

        if self._completed is None or self._completed[0] is not batch:
            whole = complete(batch, specs_of(self.model))
            self._completed = batch, {name: to_numpy(tensor) for name, tensor in whole.items()}
        return self._completed[1]

    def logits(self, batch: Batch) -> Value:
        """See `Runnable.logits`."""
        names = [output.name for output in self.model.graph.output]
        values = self.run(batch, names)
        found = find_chains(self.view)
        blocks = [*(block for chain in found.chains for block in chain.blocks), *found.singles]
        chosen = choose_output(names, values, blocks[0].hidden_size if blocks else 0)
        if chosen is None or not chosen[1]:
            raise InputError("No output of the model looks like logits: give a model that returns them.")
        return str(names[chosen[0]])

    @property
    def results(self) -> list[list[np.ndarray[Any, Any]]]:
        """The model's outputs for every sample, as `states` computed them."""
        return self._outputs

    def branch(self, block: Block, x: torch.Tensor, sample: int) -> torch.Tensor:
        """See `FrontEnd.branch`."""
        return self._runs.branch(block, x, sample)

    def onward(self, x: torch.Tensor, start: Value, stop: Value, sample: int) -> torch.Tensor:
        """See `FrontEnd.onward`."""
        return self._runs.between(self.samples[sample], [str(stop)], {start: x})[0]

    def apply(
        self,
        groups: Sequence[Sequence[Block]],
        wides: Sequence[Wide | None] | None = None,
        forms: Sequence[Form] | None = None,
    ) -> FusedFile:
        """See `FrontEnd.apply`."""
        own = [self._legal(group, form) for group, form in zip(groups, forms, strict=True)] if forms else []
        with DataFile(self.workspace / f"{self.name}.data") as data:
            return self._apply(groups, wides or [None] * len(groups), own or [Form()] * len(groups), data)

    def _legal(self, group: Sequence[Block], form: Form) -> Form:
        """`form` without what this group or this file has no place for."""
        opset = next((each.version for each in self.model.opset_import if each.domain in ("", "ai.onnx")), 0)
        form = form if form.products not in ONE_TOKEN else Form()
        known = group[0].norm.kind == "rms" and (form.norm != "RMSNormalization" or opset >= RMS_OPSET)
        return form if known else replace(form, norm="own")

    def _apply(
        self,
        groups: Sequence[Sequence[Block]],
        wides: Sequence[Wide | None],
        forms: Sequence[Form],
        data: DataFile,
    ) -> FusedFile:
        view = self._view()
        stored = {t.name: t for t in self.model.graph.initializer if _is_external(t) and size(t) >= _LARGE}
        data.begin([stored[str(name)] for name in unread(view, groups, stored)], self.folder)
        writers, names, done = [], [], []
        earlier, _ = read_provenance(self.model)
        first = max(self._first, next_number(self.model.graph))
        for index, (group, wide, form) in enumerate(zip(groups, wides, forms, strict=True), first):
            writer, own = self._rewrite(view, group, wide, form, f"fxfuse.{index}", data)
            done.append(own)
            for constant in writer.constants:
                constant.values = data.keep(constant.values)
            writers.append(writer)
            names.append((group[0], writer.branch))
        insert(view.graph, writers)
        marks = [", ".join(block.name for block in group) for group in groups]
        store = lambda constant: data.refer(constant.name, constant.values)  # noqa: E731
        model = contract(splice(self.model, view, writers, marks, store), self._expanded)
        made = [
            group_of(view, group, writer.weights, recovered=wide is not None, form=form)
            for group, writer, wide, form in zip(groups, writers, wides, done, strict=True)
        ]
        record(model, [*earlier, *made], __version__)
        if any(role.endswith("bias") for writer in writers for role in writer.weights):
            free_reserved(model)
        return self._write(model, data, names, done)

    def _rewrite(
        self,
        view: OnnxView,
        group: Sequence[Block],
        wide: Wide | None,
        form: Form,
        prefix: str,
        data: DataFile,
    ) -> tuple[Writer, Form]:
        """Write one group, with its weights in `data`; gives the form that it has, too."""
        if any(is_quantised(view, block) for block in group):
            return rewrite_quantised(view, group, stack(view, group), prefix, form)
        room = functools.partial(_room, data)
        if wide is None:
            stored = written(view, group, form, room, apart=True)
        else:
            stored = copied(view, group, wide, form, room, apart=True)
        arrays = {name: _as_array(tensor) for name, tensor in stored.tensors.items()}
        return rewrite_group(view, group, arrays, prefix, form), form

    def fused_branch(self, fused: FusedFile, index: int, x: torch.Tensor, sample: int) -> torch.Tensor:
        """See `FrontEnd.fused_branch`."""
        block, name = fused.groups[index]
        with self._judging():
            seen = self._once(fused).branch(index, x, sample) if self._runs.in_pieces else None
            if seen is not None:
                return seen
            return self._runs.part(fused.index, fused.path.parent, block, name)(x, sample)

    def outputs(
        self, fused: FusedFile | None, hidden_size: int
    ) -> tuple[str, bool, list[torch.Tensor]] | None:
        """See `FrontEnd.outputs`."""
        names = [output.name for output in self.model.graph.output]
        first = [_tensor(each) for each in self._outputs[0]]
        results = self._outputs
        if fused is not None:
            with self._judging():
                if self._runs.in_pieces:
                    results = self._once(fused).outputs
                else:
                    results = self._runs.written(fused.model, fused.path, names)
        chosen = choose_output(names, first, hidden_size)
        if chosen is None:
            return None
        index, logits = chosen
        values = [to_torch(each[index]) for each in results]
        # Minus infinity is how logits rule a class out.
        if fused is None and any(bool((each.isnan() | each.isposinf()).any()) for each in values):
            raise InputError(f"The original model gives NaN or infinity at its output {names[index]!r}.")
        return names[index], logits, values

    def _once(self, fused: FusedFile) -> Once:
        """The run of a written model; the last one is kept, since every group asks for it."""
        if self._ran is None or self._ran[0] is not fused:
            names = [output.name for output in self.model.graph.output]
            places = [(str(block.x), branch) for block, branch in fused.groups]
            self._ran = fused, Once(self._runs, fused.index, fused.path.parent, names, places)
        return self._ran[1]

    @contextlib.contextmanager
    def _judging(self) -> Iterator[None]:
        """What fails here is fxfuse's own output, unless the original fails too, written as it is."""
        try:
            yield
        except InputError as error:
            names = [output.name for output in self._original.graph.output]
            self._runner.run(self._runner.open(self._original), names, self.samples[0])
            raise VerificationError(
                f"The rewritten model does not run, so it was not written: {error}"
            ) from error

    def _view(self) -> OnnxView:
        return read_graph(self.model, self.folder)

    def _write(
        self,
        model: onnx.ModelProto,
        data: DataFile,
        groups: list[tuple[Block, str]],
        forms: list[Form],
    ) -> FusedFile:
        """One file where the model was one and still fits, else with all weights in `data`."""
        external = any(map(_is_external, self.model.graph.initializer))
        path = self.workspace / self.name
        if external or total_bytes(model) > INLINE_LIMIT:
            return FusedFile(write_model(model, self.folder, path, data), path, groups, forms)
        for tensor in model.graph.initializer:
            if data.holds(tensor):
                take_in(tensor, self.workspace)
        data.path.unlink()
        return FusedFile(write_model(model, self.folder, path, None), path, groups, forms)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _room(data: DataFile, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The memory of a wide matrix [rows, columns], in the file as MatMul reads it: [columns, rows]."""
    kind = element_type(str(dtype).removeprefix("torch."))
    return to_torch(data.room((columns, rows), kind)).T


def _as_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A vector, or a matrix that `_room` made, over the same memory."""
    return to_numpy(tensor.T).T if tensor.dim() == 2 else to_numpy(tensor)


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
    for node in walk(model.graph.node):
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


def _tensor(value: Any) -> object:
    return to_torch(value) if isinstance(value, np.ndarray) and value.dtype.kind in "fV" else value
