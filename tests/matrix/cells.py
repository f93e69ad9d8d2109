"""One cell of the table: fuse one family in one form, and hold the numbers against the parallel oracle.

    before = |original - sequential| / |sequential|         both references by hand, in float64
    after  = |fused - parallel| / |parallel|                after <= 3 before + the type's resolution

So a form that rounds (float16, 4 bits) is allowed what it loses unfused, and little more.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fxfuse
from fxfuse import Report
from tests.closeness import relative_error
from tests.families import FAMILIES, REMOVED, build, decoder_layers, example
from tests.forms import FORMS, GRAPHS, NotMade, write
from tests.forms.genai import feeds
from tests.forms.graphs import stream
from tests.parallel import parallel_model

__all__ = ["Cell", "run_cell", "chains_there"]

_GROUPS = {(3, 2): [(0, 1, 2), (3, 4)], (3,): [(0, 1, 2)], (2,): [(1, 2)], (5,): [tuple(range(5))]}


@dataclass
class Cell:
    """What became of one family in one form.

    `there` and `found` are chain lengths; `reason` says why less was found or fused than is there, or why
    the form could not be made (`made` is False then).
    """

    family: str
    form: str
    there: tuple[int, ...]
    found: tuple[int, ...] = ()
    fused: tuple[int, ...] = ()
    made: bool = True
    reason: str = ""
    before: float | None = None
    after: float | None = None
    seconds: float = 0.0


def chains_there(family: str, form: str) -> tuple[int, ...]:
    """The chains that a form of a family holds, told by hand."""
    record = FAMILIES[family]
    if form == "symbolic" and record.chains:
        return record.chains if record.chains == (3,) else (5,)
    if record.name == "T5" and form == "fp16":
        return ()  # its layers clamp a float16 stream
    return record.chains


def run_cell(family: str, form: str, folder: Path) -> Cell:
    """Make the form, fuse it, run both; FOLDER keeps the files that others are made of."""
    cell = Cell(family, form, chains_there(family, form))
    started = time.perf_counter()
    try:
        report, results = (_graph if form in GRAPHS else _file)(family, form, folder)
    except NotMade as error:
        cell.made, cell.reason = False, str(error)
        return cell
    cell.found = tuple(chain.length for chain in report.chains)
    cell.fused = tuple(len(group.blocks) for group in report.groups)
    cell.seconds = round(time.perf_counter() - started, 2)
    if cell.fused != cell.there or not cell.there:
        cell.reason = main_reason(report, cell.there)
    if results is not None:
        cell.before, cell.after = _errors(family, form, _groups(report), *results)
    return cell


def main_reason(report: Report, there: tuple[int, ...]) -> str:
    """What is said most often of the layers that could follow another; names in brackets are left out.

    Of every block there is one more sentence, that it stands alone: it counts where nothing else is said.
    """
    told = [(_layer(miss.where), re.sub(r" ?\([^()]*\)", "", miss.reason)) for miss in report.misses]
    said = [each for each in told if "stands alone" not in each[1]]
    followers = [layer for group in _GROUPS.get(there, [(0, *REMOVED)]) for layer in group[1:]]
    ranked = [each for each in said if each[0] in followers] or said or told
    return Counter(reason for _, reason in ranked).most_common(1)[0][0] if ranked else ""


def _layer(name: str) -> int | None:
    """The layer in "model.layers.3.mlp" or "/h.3/mlp/Add", if the name tells it."""
    found = re.search(r"\.(\d+)(?![^./#])", name)
    return int(found[1]) if found else None


def _file(family: str, form: str, folder: Path) -> tuple[Report, tuple[Tensor, Tensor] | None]:
    path, half = write(family, form, folder), FORMS[form].half
    given = example(family, dtype=torch.float16 if half else torch.float32)
    session = fxfuse.session(path, "cpu")
    feed = {session.get_inputs()[0].name: given.numpy()}
    if form.startswith("genai"):
        feed = feeds(session, family, given)
    out = folder / f"out.{path.name}"
    report = fxfuse.fuse_onnx(
        path, out, inputs=[feed], min_sqnr=None, provider="cpu", force=True, **FORMS[form].options
    )
    if report.output is None:
        return report, None
    return report, (_run(session, feed), _run(fxfuse.session(out, "cpu"), feed))


def _run(session: Any, feed: dict[str, np.ndarray[Any, Any]]) -> Tensor:
    return torch.from_numpy(session.run(None, feed)[0])


def _graph(family: str, form: str, _: Path) -> tuple[Report, tuple[Tensor, Tensor] | None]:
    graph, inputs = GRAPHS[form](family)
    fused, report = fxfuse.fuse(graph, inputs, min_sqnr=None)
    if not report.groups:
        return report, None
    with torch.no_grad():
        results = [_tensor(_callable(each)(*inputs)) for each in (graph, fused)]
    return report, (results[0], results[1])


def _callable(graph: Any) -> Any:
    return graph.module() if isinstance(graph, torch.export.ExportedProgram) else graph


def _tensor(value: Any) -> Tensor:
    return value[0] if isinstance(value, (tuple, list)) else value


def _groups(report: Report) -> Sequence[tuple[int, ...]]:
    """The layers of each group, by its blocks' names; by its length where the form has lost the names."""
    groups = [tuple(_layer(name) for name in group.blocks) for group in report.groups]
    if any(layer is None for group in groups for layer in group):
        return _GROUPS[tuple(map(len, groups))]
    return groups  # type: ignore[return-value]


def _errors(
    family: str, form: str, groups: Sequence[tuple[int, ...]], original: Tensor, fused: Tensor
) -> tuple[float, float]:
    half = form in FORMS and FORMS[form].half
    removed = range(5) if form == "symbolic" else None
    built = {"dtype": torch.float16 if half else torch.float32} | ({"removed": removed} if removed else {})
    model = build(family, **built)
    outputs = []
    for chosen in ((), groups):
        reference = parallel_model(model, chosen).double()
        outputs.append(_layers(reference) if removed else reference(_wide(example(family))))
    return relative_error(original, outputs[0]), relative_error(fused, outputs[1])


def _layers(model: Any) -> Tensor:
    x = stream().double()
    for layer in decoder_layers(model):
        x = _tensor(layer(x, None, None))
    return x


def _wide(given: Tensor) -> Tensor:
    return given.double() if given.is_floating_point() else given
