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
from onnx_graphsurgeon.logger import G_LOGGER

from fxfuse._version import __version__
from fxfuse.files import Staging, stage
from fxfuse.frontends.split_check import check_split
from fxfuse.naming import span
from fxfuse.onnxio import INLINE_LIMIT, total_bytes, write_model
from fxfuse.passes.onnx.contract import contract
from fxfuse.passes.onnx.provenance import read_provenance, record
from fxfuse.passes.onnx.rewrite import insert
from fxfuse.passes.onnx.splice import splice
from fxfuse.passes.onnx.unfuse import unfuse
from fxfuse.passes.records import Miss
from fxfuse.pipeline import Progress
from fxfuse.split_source import Pair, SplitSource, find_pairs, taken

__all__ = ["SplitReport", "default_split_output", "split_onnx"]

AnyPath = str | os.PathLike[str]


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
        wide += ", not all of them," if self.misses else ""
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
        source, pairs, report.misses = find_pairs(path)
        report.notes = source.notes
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


def _write(
    source: SplitSource, pairs: Sequence[Pair], staging: Staging, report: SplitReport, progress: Progress
) -> None:
    out = staging.target.name
    external = len(source.files) > 1 or total_bytes(source.model) > INLINE_LIMIT
    data = staging.path(f"{out}.data") if external else None
    progress("writing the blocks")
    written = write_model(_rewrite(source, pairs, report.parallel), source.folder, staging.folder / out, data)
    progress("verifying")
    fused, split = (source.model, source.folder), (written, staging.folder)
    report.error = check_split(fused, split, pairs, report.parallel)


def _rewrite(source: SplitSource, pairs: Sequence[Pair], parallel: bool) -> onnx.ModelProto:
    view, expanded = source.view, source.expanded
    done = [unfuse(view, block, group, parallel=parallel) for block, group in pairs]
    writers = [writer for writer, _ in done]
    insert(view.graph, writers)
    split = contract(splice(expanded.model, view, writers, [""] * len(writers)), expanded)
    split.graph.initializer.extend(taken(source, each) for _, slices in done for each in slices)
    undone = {group.blocks for _, group in pairs}
    kept = [group for group in read_provenance(source.model)[0] if group.blocks not in undone]
    record(split, kept, __version__)
    return split
