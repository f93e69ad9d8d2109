"""Quantise the products of an ONNX file; everything else stays as it is, byte for byte.

1. Each product goes through ONNX Runtime's own quantiser by itself, and what that makes takes its place.
2. A weight that nothing else reads leaves the file; the packed one takes its place in fxfuse's record of
   the wide FFNs, too.
3. Float weights are read through memory maps and packed ones go straight to the data file where there is one.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import ChainMap, Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from fxfuse.datafile import DataFile
from fxfuse.errors import InputError
from fxfuse.external import data_files
from fxfuse.files import stage
from fxfuse.onnxio import load_model, read_tensor, write_model
from fxfuse.passes.onnx.copies import copy_fields
from fxfuse.passes.onnx.provenance import KEY
from fxfuse.passes.records import Miss
from fxfuse.quantisation.library import Quantised, quantise
from fxfuse.quantisation.options import Quantise
from fxfuse.quantisation.products import Stored, name_of, objection

__all__ = ["Written", "quantize_file", "write_quantised"]

AnyPath = str | os.PathLike[str]
_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Written:
    """A quantised file: the model as it was written, names of products that were quantised, and the rest."""

    model: onnx.ModelProto
    path: Path
    products: tuple[str, ...]
    left: tuple[Miss, ...]


def quantize_file(
    path_in: AnyPath,
    path_out: AnyPath,
    kind: str,
    *,
    block_size: int = 32,
    accuracy_level: int = 4,
    exclude: str | None = None,
    force: bool = False,
) -> Written:
    """Write an ONNX file with the weights of its MatMul products as int8 or int4, fused or not.

    Args:
        path_in: The model; external data are read from beside it.
        path_out: Where to write; the file appears whole or not at all.
        kind: "int8" (quantize_dynamic, one scale for each output) or "int4" (MatMulNBits, symmetric).
        block_size: How many int4 weights share a scale.
        accuracy_level: Of int4 products; at 4 ONNX Runtime rounds their inputs to 8 bits.
        exclude: A regular expression, searched for in the layer paths and names of products and weights;
            what matches stays float.
        force: Overwrite the output, or the input.

    Raises:
        InputError: The model, an option or the output's place cannot be used, or no product can be quantised.
    """
    wish = Quantise(kind, exclude, block_size, accuracy_level)
    path, out = Path(path_in), Path(path_out)
    model, folder = load_model(path)
    with stage(out, inputs=[path, *data_files(model, folder)], force=force) as staging:
        if data_files(model, folder):
            staging.path(f"{out.name}.data")
        return write_quantised(model, folder, staging.path(out.name), wish)


def write_quantised(
    model: onnx.ModelProto, folder: Path, path: Path, wish: Quantise, leave: Collection[str] = ()
) -> Written:
    """Write `model`, whose external data lie in `folder`, quantised to `path`, with data beside it if it had.

    The weights named in `leave` stay as they are.

    Raises:
        InputError: No product can be quantised.
    """
    with contextlib.ExitStack() as stack:
        data = None
        if data_files(model, folder):
            data = stack.enter_context(DataFile(path.parent / f"{path.name}.data"))
        writer = _Writer(model, folder, wish, leave, data)
        made = writer.model()
        if not writer.done:
            why = f" ({writer.left[0].where}: {writer.left[0].reason})" if writer.left else ""
            raise InputError(f"The model has no product with a stored float weight to quantise{why}.")
        written = write_model(made, folder, path, data)
    return Written(written, path, tuple(writer.done), tuple(writer.left))


class _Writer:
    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path,
        wish: Quantise,
        leave: Collection[str],
        data: DataFile | None,
    ) -> None:
        self._source, self._folder, self._wish, self._leave, self._data = model, folder, wish, leave, data
        self._opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
        self._readers = Counter(_read_names(model.graph))
        self._taken = set(_all_names(model.graph))
        self._packed: dict[str, list[onnx.TensorProto]] = {}
        self._renamed: dict[str, str] = {}
        self._emitted: set[tuple[str, ...]] = set()
        self.done: list[str] = []
        self.left: list[Miss] = []

    def model(self) -> onnx.ModelProto:
        """The quantised model; large new tensors lie in the data file."""
        made = onnx.ModelProto()
        copy_fields(self._source, made, without=("graph",))
        self._write(self._source.graph, made.graph, ChainMap(), inside=False)
        if self._wish.kind == "int4" and all(each.domain != _DOMAIN for each in made.opset_import):
            made.opset_import.add(domain=_DOMAIN, version=1)
        _rename_recorded(made, self._renamed)
        return made

    def _write(
        self, source: onnx.GraphProto, target: onnx.GraphProto, outer: Stored, *, inside: bool
    ) -> None:
        own = {tensor.name: tensor for tensor in source.initializer}
        stored = ChainMap(own, dict(outer))
        copy_fields(source, target, without=("node", "initializer", "input"))
        for node in source.node:
            target.node.extend(self._nodes(node, stored, inside))
        gone = {name for name in own if name in self._packed and not self._readers[name]}
        for name, tensor in own.items():
            if name not in gone:
                target.initializer.append(tensor)
            target.initializer.extend(self._packed.get(name, ()))
        target.input.extend(value for value in source.input if value.name not in gone)

    def _nodes(self, node: onnx.NodeProto, stored: Stored, inside: bool) -> list[onnx.NodeProto]:
        """What stands for a node in the quantised graph."""
        if any(_graphs(node)):
            return [self._with_bodies(node, stored)]
        reason = objection(node, stored, self._wish, self._leave, inside=inside)
        quantised = self._quantise(node, stored) if reason is None else None
        if quantised is None:
            if reason != "":
                taken = "its packed weight would take a name that the model uses"
                self.left.append(Miss(name_of(node), reason or taken))
            return [node]
        self._readers[node.input[1]] -= 1
        self.done.append(name_of(node))
        return [each for each in quantised.nodes if self._is_new(each)]

    def _with_bodies(self, node: onnx.NodeProto, stored: Stored) -> onnx.NodeProto:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for before, after in zip(_graphs(node), _graphs(copy), strict=True):
            after.Clear()
            self._write(before, after, stored, inside=True)
        return copy

    def _quantise(self, node: onnx.NodeProto, stored: Stored) -> Quantised | None:
        tensor = stored[node.input[1]]
        found = quantise(node, read_tensor(tensor, self._folder), self._opset, self._wish)
        if tensor.name not in self._packed:
            fresh = {name for each in found.nodes for name in each.output} - set(node.output)
            if self._taken & (fresh | set(found.tensors)):
                return None
            self._packed[tensor.name] = [self._store(name, each) for name, each in found.tensors.items()]
            self._renamed[tensor.name] = found.weight
        for each in found.nodes:
            each.doc_string = node.doc_string
            each.metadata_props.extend(node.metadata_props)
        return found

    def _store(self, name: str, array: Any) -> onnx.TensorProto:
        if self._data is not None:
            array = self._data.keep(array)
            if (stored := self._data.refer(name, array)) is not None:
                return stored
        return onnx.numpy_helper.from_array(array, name)

    def _is_new(self, node: onnx.NodeProto) -> bool:
        """Whether no product wrote this node yet: those that read one stream share its rounding to 8 bits."""
        outputs = tuple(node.output)
        known = outputs in self._emitted
        self._emitted.add(outputs)
        return not known


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _read_names(graph: onnx.GraphProto) -> Iterator[str]:
    """The names that nodes and outputs read, as often as they do, in bodies too."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for body in _graphs(node):
            yield from _read_names(body)


def _all_names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (each.name for each in (*graph.input, *graph.initializer))
    for node in graph.node:
        yield from node.output
        for body in _graphs(node):
            yield from _all_names(body)


def _rename_recorded(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Let fxfuse's record of wide FFNs name the packed weights."""
    for entry in model.metadata_props:
        if entry.key == KEY:
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                whole = json.loads(entry.value)
                for group in whole["groups"]:
                    group["weights"] = _renamed(group["weights"], names)
                entry.value = json.dumps(whole)


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    return names.get(value, value) if isinstance(value, str) else value
