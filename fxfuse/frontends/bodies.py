"""Fuse the chains inside the bodies of If, Loop and Scan, each body as a model of its own.

    outer model --- values that a body reads, on the samples ---> body's samples ---> the pipeline ---> back

A Loop is measured in its first iteration, a Scan at its first step, and the branch of an If that the samples
do not take on what it would read. The caller holds what is written against the original as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from fxfuse._version import __version__
from fxfuse.budget import Budget
from fxfuse.errors import InputError
from fxfuse.external import external_tensors
from fxfuse.frontends.body_inputs import body_inputs, names_of_inputs
from fxfuse.frontends.body_weights import add_weights, share_weights
from fxfuse.frontends.onnx_file import OnnxFile
from fxfuse.frontends.onnx_graph import read_graph
from fxfuse.frontends.onnx_runner import Runner
from fxfuse.frontends.pieces import Pieces
from fxfuse.inputs import Sample
from fxfuse.onnxio import INLINE_LIMIT, inferred_shapes, total_bytes, write_model
from fxfuse.passes.chains import find_chains
from fxfuse.passes.onnx.bodies import Body, Hoisted, bodies_of, drop_unread, hoist, put_back
from fxfuse.passes.onnx.expand import expand
from fxfuse.passes.onnx.extract import ModelIndex
from fxfuse.passes.onnx.provenance import WideGroup, next_number, read_provenance, record
from fxfuse.passes.records import Miss
from fxfuse.pipeline import Progress
from fxfuse.pipeline import fuse as run_pipeline
from fxfuse.report import Report
from fxfuse.sessions import Provider

__all__ = ["Bodies", "Placed"]


@dataclass(frozen=True)
class Placed:
    """A model, the folder of its external data, and the samples that it is measured on."""

    model: onnx.ModelProto
    folder: Path
    samples: Sequence[Sample]


@dataclass
class Bodies:
    """Fuses what is inside of models; `reports` holds one for each body that has FFN blocks, by its place."""

    provider: Provider
    budget: Budget
    progress: Progress
    reports: dict[str, Report] = field(default_factory=dict)
    first: int = 0

    def fuse(self, source: Placed, path: Path, where: str = "") -> Placed | None:
        """`source` with its bodies fused, written to `path` in a new folder; None where none was.

        Raises:
            VerificationError: A rewritten body does not compute what it should.
        """
        model, made, fused = source.model, onnx.ModelProto(), []
        bodies = list(bodies_of(model.graph))
        if not bodies:
            return None
        path.parent.mkdir()
        self.first = max(self.first, next_number(model.graph))
        made.CopyFrom(model)
        for number, body in enumerate(bodies):
            with inferred_shapes(model):
                hoisted = hoist(model, body)
            own = path.parent / f"body{number}" / path.name
            done = self._fuse_body(source, body, hoisted, own, f"{body.place}{where}")
            if done is not None:
                add_weights(made, put_back(made, body, hoisted, done.model), done.folder)
                fused.append(done.model)
        return self._write(source, made, fused, path) if fused else None

    def _write(
        self, source: Placed, made: onnx.ModelProto, fused: Sequence[onnx.ModelProto], path: Path
    ) -> Placed:
        new = share_weights(made, source.model, source.folder)
        drop_unread(made, source.model)
        groups: dict[frozenset[tuple[str, str]], WideGroup] = {}
        for group in [each for model in (made, *fused) for each in read_provenance(model)[0]]:
            weights = {role: new.get(name, name) for role, name in group.weights.items()}
            groups.setdefault(frozenset(weights.items()), replace(group, weights=weights))
        record(made, list(groups.values()), __version__)
        external = any(external_tensors(source.model)) or total_bytes(made) > INLINE_LIMIT
        data = path.parent / f"{path.name}.data" if external else None
        return Placed(write_model(made, source.folder, path, data), path.parent, source.samples)

    def _fuse_body(
        self, outer: Placed, body: Body, hoisted: Hoisted, path: Path, place: str
    ) -> Placed | None:
        report = Report(model=place)
        found = find_chains(read_graph(hoisted.model, outer.folder))
        report.add_found(found)
        if report.ffn_blocks or report.misses:
            self.reports[place] = report
        if not found.chains and not any(bodies_of(hoisted.model.graph)):
            return None
        self.progress(f"running what is around {place}")
        try:
            own = Placed(hoisted.model, outer.folder, self._samples(outer, body, hoisted, path.parent.parent))
            inside = self.fuse(own, path, f" in {place}")
            chains = self._fuse_chains(inside or own, path, report) if found.chains else None
        except InputError as error:
            decline(report, f"the body cannot be measured by itself ({str(error).rstrip('.')})")
            return None
        return chains or inside

    def _fuse_chains(self, source: Placed, path: Path, report: Report) -> Placed | None:
        workspace = path.parent.parent / f"{path.parent.name}.chains"
        workspace.mkdir()
        first = self.first + sum(len(each.groups) for each in self.reports.values())
        front = OnnxFile(
            source.model, source.folder, source.samples, workspace, path.name, self.provider, first=first
        )
        # The divergence of the logits is bounded for the whole model, not for one body of it.
        fused = run_pipeline(front, replace(self.budget, max_kl=None), report, self.progress)
        return None if fused is None else Placed(fused.model, workspace, source.samples)

    def _samples(self, outer: Placed, body: Body, hoisted: Hoisted, scratch: Path) -> list[Sample]:
        """What the body is given, for every sample of the outer model; `scratch` is a folder to write in."""
        node, graph = outer.model.graph.node[body.node], body.of(outer.model.graph)
        names = list(dict.fromkeys([*hoisted.captured, *names_of_inputs(node)]))
        whole = expand(outer.model).model
        runner = Runner(whole, outer.folder, self.provider, scratch)
        results = Pieces(runner, ModelIndex(whole), outer.folder).run(names, outer.samples)
        values = [dict(zip(names, each, strict=True)) for each in results]
        return [body_inputs(node, graph, hoisted.captured, each) for each in values]


def decline(report: Report, reason: str) -> None:
    """Leave every block of a report sequential, for one reason."""
    report.misses += [
        Miss(block.name, f"left sequential: {reason}") for chain in report.chains for block in chain.blocks
    ]
    report.groups, report.end_to_end, report.error = [], {}, None
