"""Remove attention from an ONNX file: bypassed, verified in ONNX Runtime, and written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx_graphsurgeon.logger import G_LOGGER

from fxfuse.external import data_files
from fxfuse.files import Staging, stage
from fxfuse.frontends.onnx_file import OnnxFile
from fxfuse.onnxio import INLINE_LIMIT, load_model, total_bytes, write_model
from fxfuse.passes.attention import Attention, find_attention
from fxfuse.passes.chains import find_chains
from fxfuse.passes.onnx.bypass import bypass, renumber
from fxfuse.passes.onnx.contract import contract
from fxfuse.passes.onnx.expand import Expanded
from fxfuse.passes.onnx.view import OnnxView
from fxfuse.passes.records import Found
from fxfuse.pipeline import Progress
from fxfuse.removal.genai import NAME, follow, read_config
from fxfuse.removal.onnx_check import check_written
from fxfuse.removal.records import Choice, Removal
from fxfuse.removal.which import Which, select
from fxfuse.sessions import Provider

__all__ = ["default_removed_output", "remove_attention_onnx"]

AnyPath = str | os.PathLike[str]


def default_removed_output(model_path: AnyPath) -> Path:
    """MODEL.less.onnx beside MODEL.onnx."""
    path = Path(model_path)
    return path.parent / f"{path.stem if path.suffix == '.onnx' else path.name}.less.onnx"


def remove_attention_onnx(
    model_path: AnyPath,
    out_path: AnyPath | None,
    which: Which,
    *,
    renumber: bool = False,
    provider: Provider = "auto",
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Removal:
    """Write an ONNX file without some of its attentions, norms before them included.

    The attentions' weights are not copied; past keys and values that only they read leave the inputs, present
    ones the outputs. A genai_config.json beside the model is written beside the output too, and follows.

    Args:
        model_path: The model; external data are read from beside it.
        out_path: Where to write; MODEL.less.onnx beside the model by default.
        which: Layers ("5-10,12" or numbers), layer paths, a `Choice`, or the configuration of another tool
            (LLM-Drop, nemotron-nas, transformers) as a dict or a path.
        renumber: Give the cache that is left numbers without gaps.
        provider: "auto", "cuda" or "cpu", to verify with.
        force: Overwrite the output, or the input.
        progress: Called with a short text at every step.

    Raises:
        InputError: The model cannot be used, or such an attention is not there or cannot go.
        VerificationError: What was written does not compute what it should; nothing is in its place then.
    """
    started, path = time.perf_counter(), Path(model_path)
    out = Path(out_path) if out_path is not None else default_removed_output(path)
    with G_LOGGER.suppress(G_LOGGER.ERROR):  # it prints, to stdout
        progress("reading the model")
        source = _Source.read(path, provider)
        attentions = select(which, *find_attention(source.view))
        report = _report(source, attentions)
        report.choice = which if isinstance(which, Choice) else None
        with stage(out, inputs=source.files, force=force, needed=source.size) as staging:
            _write(source, attentions, staging, renumber, report, progress)
    report.output = str(out)
    report.seconds = round(time.perf_counter() - started, 3)
    return report


@dataclass
class _Source:
    """The file, its data in `folder`, and its working copy as it is read and run."""

    path: Path
    model: onnx.ModelProto
    folder: Path
    expanded: Expanded
    front: OnnxFile
    workspace: Any = field(repr=False)

    @classmethod
    def read(cls, path: Path, provider: Provider) -> _Source:
        model, folder = load_model(path)
        workspace = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        front = OnnxFile(model, folder, [], Path(workspace.name), path.name, provider)
        return cls(path, model, folder, front._expanded, front, workspace)

    @property
    def view(self) -> OnnxView:
        return self.front.view

    @property
    def files(self) -> list[Path]:
        return [self.path, *data_files(self.model, self.folder)]

    @property
    def size(self) -> int:
        return sum(each.stat().st_size for each in self.files)


def _report(source: _Source, attentions: Sequence[Attention]) -> Removal:
    found, misses = find_attention(source.view)
    gone = {each.name for each in attentions}
    return Removal(
        str(source.path),
        removed=tuple(each.name for each in attentions),
        kept=tuple(each.name for each in found if each.name not in gone),
        misses=[(miss.where, miss.reason) for miss in misses],
        chains_before=_names(find_chains(source.view)),
        bytes_before=total_bytes(source.model),
    )


def _names(found: Found) -> list[tuple[str, ...]]:
    return [tuple(block.name for block in chain.blocks) for chain in found.chains]


def _write(
    source: _Source,
    attentions: Sequence[Attention],
    staging: Staging,
    again: bool,
    report: Removal,
    progress: Progress,
) -> None:
    progress("taking the attentions out")
    model = contract(bypass(source.expanded.model, attentions), source.expanded)
    report.renamed = renumber(model) if again else {}
    name = staging.target.name
    external = len(source.files) > 1 or total_bytes(model) > INLINE_LIMIT
    data = staging.path(f"{name}.data") if external else None
    written = write_model(model, source.folder, staging.folder / name, data)
    _fill(report, source.model, written)
    _write_config(source, written, staging, again, report)
    progress("verifying")
    front = OnnxFile(
        written, staging.folder, [], Path(source.workspace.name), name, source.front._runner.provider
    )
    report.chains = _names(find_chains(front.view))
    gone = {*report.inputs, *report.outputs}
    note = check_written(source.model, source.front, front, attentions, gone, report.renamed)
    report.notes += [note] if note else []


def _fill(report: Removal, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    old = {new: name for name, new in report.renamed.items()}
    for which in ("input", "output"):
        left = {old.get(each.name, each.name) for each in getattr(after.graph, which)}
        stored = {each.name for each in before.graph.initializer}
        gone = [each.name for each in getattr(before.graph, which) if each.name not in left | stored]
        setattr(report, f"{which}s", tuple(gone))
    report.bytes_after = total_bytes(after)


def _write_config(
    source: _Source, written: onnx.ModelProto, staging: Staging, again: bool, report: Removal
) -> None:
    """genai_config.json beside the output; under the output's own name where the input's stands there."""
    config = read_config(source.path.parent)
    if config is None:
        return
    same = os.path.realpath(source.path.parent) == os.path.realpath(staging.target.parent)
    name = f"{staging.target.name}.{NAME}" if same else NAME
    made = follow(config, staging.target.name, _numbers(source.model, report), again)
    staging.path(name).write_text(json.dumps(made, indent=4) + "\n", encoding="utf-8")
    report.notes.append(f"{NAME} was written as {name}" if same else f"{NAME} was written beside the model")


def _numbers(before: onnx.ModelProto, report: Removal) -> dict[int, int]:
    """The numbers of the cache that is left, and what each is now."""
    gone = {*report.inputs, *report.outputs}
    numbers = {}
    for each in (*before.graph.input, *before.graph.output):
        match = re.match(r".*?(?:past|present)\D*(\d+)", each.name)
        if match is not None and each.name not in gone:
            new = re.match(r".*?(?:past|present)\D*(\d+)", report.renamed.get(each.name, each.name))
            assert new is not None
            numbers[int(match[1])] = int(new[1])
    return numbers
