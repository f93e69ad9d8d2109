"""A fused ONNX file as it is split: its wide FFNs in the default form, and where their weights lie."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import uses_external_data

from fxfuse._version import __version__
from fxfuse.external import cut, data_files
from fxfuse.frontends.onnx_graph import read_graph
from fxfuse.naming import span
from fxfuse.onnxio import load_model, read_tensor
from fxfuse.passes.chains import find_chains
from fxfuse.passes.onnx.expand import Expanded, expand
from fxfuse.passes.onnx.plain import Plain, plain
from fxfuse.passes.onnx.provenance import WideGroup, read_provenance, record
from fxfuse.passes.onnx.unfuse import RECOVERED, Slice, objection
from fxfuse.passes.onnx.view import OnnxView
from fxfuse.passes.records import Block, Miss

__all__ = ["Pair", "SplitSource", "find_pairs", "taken"]

Pair = tuple[Block, WideGroup]
_FLOATS = tuple(getattr(onnx.TensorProto, name) for name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"))


@dataclass(frozen=True)
class SplitSource:
    """The file to split: its data in `folder`, and its working copy as it is read.

    In the copy wide FFNs of other forms are in the default one; `left` are the groups where they are not.
    """

    model: onnx.ModelProto
    folder: Path
    files: list[Path]
    plain: Plain
    left: list[WideGroup]
    notes: list[str]
    expanded: Expanded
    view: OnnxView

    @classmethod
    def read(cls, path: Path, without: Collection[WideGroup] = ()) -> SplitSource:
        """Read a file; the groups `without` stay as they are."""
        model, folder = load_model(path)
        groups, notes = read_provenance(model)
        gone = {group.blocks for group in without}
        wanted = [group for group in groups if not group.recovered and group.blocks not in gone]
        own = plain(model, wanted, lambda tensor: read_tensor(tensor, folder))
        there = {group.blocks for group in own.groups}
        left = [group for group in groups if group.blocks not in there]
        if own.model is not model:
            record(own.model, [*own.groups, *left], __version__)
        expanded = expand(own.model)
        files = [path, *data_files(model, folder)]
        return cls(model, folder, files, own, left, notes, expanded, read_graph(expanded.model, folder))

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(each.stat().st_size for each in self.files)


def find_pairs(path: Path) -> tuple[SplitSource, list[Pair], list[Miss]]:
    """The file, what can be split of it and what cannot: that is in the copy as the file has it."""
    source = SplitSource.read(path)
    pairs, misses = _recorded(source)
    split = {group.blocks for _, group in pairs}
    whole = [group for group in source.plain.groups if group.blocks not in split]
    if source.plain.parts and whole:
        source = SplitSource.read(path, without=whole)
        pairs, _ = _recorded(source)
    return source, pairs, misses


def _recorded(source: SplitSource) -> tuple[list[Pair], list[Miss]]:
    """The wide FFNs of the graph with their records, and what has none, or another."""
    by_gate = {_first(group): group for group in (*source.plain.groups, *source.left)}
    types = {tensor.name: tensor.data_type for tensor in source.plain.model.graph.initializer}
    packed = {
        span(group.blocks): group
        for group in by_gate.values()
        if any(types[name] not in _FLOATS for name in group.weights.values())
    }
    pairs, misses = [], []
    for block in (each for each in find_chains(source.view).singles if each.made_of is not None):
        group = by_gate.pop(str(block.ffn.gate.weight), None)
        if group is None and block.name in packed:
            continue  # told below
        reason = objection(block, group) if group is not None else "the file does not record its blocks"
        if group is None or reason is not None:
            misses.append(Miss(block.name, str(reason)))
        else:
            pairs.append((block, group))
    for group in by_gate.values():
        name = span(group.blocks)
        misses.append(
            Miss(name, f"{_reason(group, name in packed, source)}: fuse the original model instead")
        )
    return pairs, misses


def _reason(group: WideGroup, packed: bool, source: SplitSource) -> str:
    """Why a recorded group is not among the wide FFNs that were found."""
    if packed:
        return "its weights are quantised"
    if group.recovered:
        return RECOVERED
    if group.blocks in [each.blocks for each in source.plain.odd]:
        return f"its nodes are not as fxfuse wrote them in the form {group.form}"
    return "no FFN reads its weights as the record says"


def _first(group: WideGroup) -> str:
    """The weight that tells a group: its gate, or the first part of it."""
    return group.weights.get("gate") or next(iter(group.weights.values()))


def taken(source: SplitSource, wanted: Slice) -> onnx.TensorProto:
    """A part of a wide weight, from wherever its rows are stored."""
    stored = {each.name: each for each in source.plain.model.graph.initializer}
    stored |= {each.name: each for each in source.model.graph.initializer}
    parts = source.plain.parts.get(wanted.source)
    if parts is None:
        return _cut(stored[wanted.source], wanted, source.folder)
    pieces = []
    for part in parts:
        start, stop = max(part.start, wanted.start), min(part.stop, wanted.stop)
        if start < stop:
            shift = part.offset - part.start
            pieces.append((part.source, replace(wanted, start=start + shift, stop=stop + shift)))
    if len(pieces) == 1:
        return _cut(stored[pieces[0][0]], pieces[0][1], source.folder)
    arrays = [_array(stored[name], piece, source.folder) for name, piece in pieces]
    whole = np.concatenate(arrays, wanted.axis)
    kind = stored[pieces[0][0]].data_type
    return onnx.TensorProto(name=wanted.name, data_type=kind, dims=whole.shape, raw_data=whole.tobytes())


def _cut(tensor: onnx.TensorProto, part: Slice, folder: Path) -> onnx.TensorProto:
    if uses_external_data(tensor):
        return cut(tensor, part.name, part.axis, part.start, part.stop)
    piece = _array(tensor, part, folder)
    return onnx.TensorProto(
        name=part.name, data_type=tensor.data_type, dims=piece.shape, raw_data=piece.tobytes()
    )


def _array(tensor: onnx.TensorProto, part: Slice, folder: Path) -> np.ndarray[Any, Any]:
    return read_tensor(tensor, folder)[(slice(None),) * part.axis + (slice(part.start, part.stop),)]
