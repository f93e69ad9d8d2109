"""Undo a fusion: write each wide FFN of an ONNX file as the blocks it was made of."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx.external_data_helper import uses_external_data
from onnx_graphsurgeon.logger import G_LOGGER

from fxfuse._version import __version__
from fxfuse.external import cut, data_files
from fxfuse.files import Staging, stage
from fxfuse.frontends.onnx_graph import read_graph
from fxfuse.frontends.split_check import check_split
from fxfuse.naming import span
from fxfuse.onnxio import INLINE_LIMIT, load_model, read_tensor, total_bytes, write_model
from fxfuse.passes.chains import find_chains
from fxfuse.passes.onnx.contract import contract
from fxfuse.passes.onnx.expand import Expanded, expand
from fxfuse.passes.onnx.provenance import WideGroup, read_provenance, record
from fxfuse.passes.onnx.rewrite import insert
from fxfuse.passes.onnx.splice import splice
from fxfuse.passes.onnx.unfuse import Slice, objection, unfuse
from fxfuse.passes.onnx.view import OnnxView
from fxfuse.passes.records import Block, Miss
from fxfuse.pipeline import Progress

__all__ = ["SplitReport", "default_split_output", "split_onnx"]

AnyPath = str | os.PathLike[str]
Pair = tuple[Block, WideGroup]
_FLOATS = tuple(getattr(onnx.TensorProto, name) for name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"))


@dataclass
class SplitReport:
    """What was split and what was not. `groups` names the blocks of every wide FFN that was split."""

    model: str
    output: str | None = None
    parallel: bool = False
    groups: list[tuple[str, ...]] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: float = 0.0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """The report as a JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def summary(self) -> str:
        """One line, for a log."""
        if not self.groups:
            return "no wide FFN to split"
        wide = f"{len(self.groups)} wide FFN{'s' * (len(self.groups) > 1)}"
        blocks = f"{sum(map(len, self.groups))} blocks {'in parallel' if self.parallel else 'in sequence'}"
        return f"split {wide} into {blocks}; their sum differs by {self.error:.2g}"

    def __str__(self) -> str:
        """A line for what was done, and one for everything that was not."""
        lines = [f"{self.model}: {self.summary()}"]
        lines += [f"  {span(group)}" for group in self.groups]
        lines += [f"not split: {miss.where}: {miss.reason}" for miss in self.misses]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"written to {self.output}" if self.output else "nothing was written"])


def split_onnx(
    model_path: AnyPath,
    out_path: AnyPath | None = None,
    *,
    parallel: bool = False,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> SplitReport:
    """Write the blocks that the wide FFNs of a fused file were made of, under their own names.

    The sequential form, which is the default, is what the file was fused from: block i reads the stream after
    block i - 1, so that `fuse_onnx` finds the chain again and can group it in another way. Gains stay
    folded into gate and up.

    Args:
        model_path: A file that fxfuse wrote; external data are read from beside it.
        out_path: Where to write; MODEL.split.onnx beside the model by default.
        parallel: Keep the function of the fused file: its blocks all read the group's stream and are summed.
        force: Overwrite the output, or the input.
        progress: Called with a short text at every step.

    Returns:
        What was split; its `output` is None where there was nothing to split.

    Raises:
        InputError: The model or the output's place cannot be used.
        VerificationError: The blocks do not sum to the wide FFN; nothing was written.
    """
    started, path = time.perf_counter(), Path(model_path)
    report = SplitReport(os.fspath(model_path), parallel=parallel)
    out = Path(out_path) if out_path is not None else default_split_output(path)
    with G_LOGGER.suppress(G_LOGGER.ERROR):  # it prints, to stdout
        progress("reading the model")
        source = _Source.read(path)
        pairs = _recorded(source, report)
        if pairs:
            with stage(out, inputs=source.files, force=force, needed=source.size) as staging:
                _write(source, pairs, staging, report, progress)
            report.groups, report.output = [group.blocks for _, group in pairs], str(out)
    report.seconds = round(time.perf_counter() - started, 3)
    return report


def default_split_output(model_path: AnyPath) -> Path:
    """MODEL.split.onnx beside MODEL.fused.onnx or MODEL.onnx."""
    path = Path(model_path)
    stem = path.stem.removesuffix(".fused") if path.suffix == ".onnx" else path.name
    return path.parent / f"{stem}.split.onnx"


@dataclass(frozen=True)
class _Source:
    """The file to split: its data in `folder`, its working copy as it is read."""

    model: onnx.ModelProto
    folder: Path
    files: list[Path]
    expanded: Expanded
    view: OnnxView

    @classmethod
    def read(cls, path: Path) -> _Source:
        model, folder = load_model(path)
        expanded = expand(model)
        files = [path, *data_files(model, folder)]
        return cls(model, folder, files, expanded, read_graph(expanded.model, folder))

    @property
    def size(self) -> int:
        return sum(each.stat().st_size for each in self.files)


def _recorded(source: _Source, report: SplitReport) -> list[Pair]:
    """The wide FFNs of the graph with their records; what has none, or another, goes into the report."""
    groups, report.notes = read_provenance(source.model)
    by_gate = {group.weights.get("gate"): group for group in groups}
    pairs = []
    for block in (each for each in find_chains(source.view).singles if each.made_of is not None):
        group = by_gate.pop(str(block.ffn.gate.weight), None)
        if group is None and block.name in {span(each.blocks) for each in by_gate.values()}:
            continue  # its record names packed weights: told below
        reason = objection(block, group) if group is not None else "the file does not record its blocks"
        if group is None or reason is not None:
            report.misses.append(Miss(block.name, str(reason)))
        else:
            pairs.append((block, group))
    types = {tensor.name: tensor.data_type for tensor in source.model.graph.initializer}
    for group in by_gate.values():
        whole = any(types[name] not in _FLOATS for name in group.weights.values())
        reason = "its weights are quantised" if whole else "no FFN reads its weights as the record says"
        report.misses.append(Miss(span(group.blocks), f"{reason}: fuse the original model instead"))
    return pairs


def _write(
    source: _Source, pairs: Sequence[Pair], staging: Staging, report: SplitReport, progress: Progress
) -> None:
    out = staging.target.name
    external = len(source.files) > 1 or total_bytes(source.model) > INLINE_LIMIT
    data = staging.path(f"{out}.data") if external else None
    progress("writing the blocks")
    written = write_model(_rewrite(source, pairs, report.parallel), source.folder, staging.folder / out, data)
    progress("verifying")
    fused, split = (source.model, source.folder), (written, staging.folder)
    report.error = check_split(fused, split, pairs, report.parallel)


def _rewrite(source: _Source, pairs: Sequence[Pair], parallel: bool) -> onnx.ModelProto:
    view, expanded = source.view, source.expanded
    done = [unfuse(view, block, group, parallel=parallel) for block, group in pairs]
    writers = [writer for writer, _ in done]
    insert(view.graph, writers)
    split = contract(splice(expanded.model, view, writers, [""] * len(writers)), expanded)
    stored = {tensor.name: tensor for tensor in source.model.graph.initializer}
    split.graph.initializer.extend(
        _cut(stored[each.source], each, source.folder) for _, slices in done for each in slices
    )
    undone = {group.weights["gate"] for _, group in pairs}
    kept = [group for group in read_provenance(source.model)[0] if group.weights.get("gate") not in undone]
    record(split, kept, __version__)
    return split


def _cut(tensor: onnx.TensorProto, part: Slice, folder: Path) -> onnx.TensorProto:
    if uses_external_data(tensor):
        return cut(tensor, part.name, part.axis, part.start, part.stop)
    array = read_tensor(tensor, folder)
    piece = array[(slice(None),) * part.axis + (slice(part.start, part.stop),)]
    return onnx.TensorProto(
        name=part.name, data_type=tensor.data_type, dims=piece.shape, raw_data=piece.tobytes()
    )
