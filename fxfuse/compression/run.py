"""From a stock model to a fused one, every stage kept, judged against the stock model, and resumable.

    stock -> attention removed -> healed -> fused -> recovered -> (polished) -> ONNX file

Which attentions go, the groups and every correction are decided on the fitting part of the data; what is
told of a stage is measured on the part held out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from fxfuse.analysis.api import analyze
from fxfuse.analysis.measure import Measurements
from fxfuse.analysis.records import Analysis
from fxfuse.calibration import Calibration
from fxfuse.calibration.store import DEFAULT_BOUND
from fxfuse.compression.folder import Folder
from fxfuse.compression.judging import StageJudge
from fxfuse.compression.records import Compressed
from fxfuse.distillation.api import distill
from fxfuse.errors import InputError
from fxfuse.export import export_program
from fxfuse.frontends.opening import open_model
from fxfuse.frontends.protocol import Runnable
from fxfuse.frontends.torch_model import export_module, read_torch
from fxfuse.page.records import Stage
from fxfuse.passes.attention import stream_updates
from fxfuse.planning.choose import plan as choose_plan
from fxfuse.planning.matching import match_plan
from fxfuse.planning.records import Plan, PlannedGroup
from fxfuse.progress import Progress, silent
from fxfuse.removal.api import remove_attention
from fxfuse.removal.choosing import choose_attention
from fxfuse.removal.which import Which
from fxfuse.torch_api import fuse

__all__ = ["compress"]

_POLISHING = {"learning_rate": 3e-4}
"""A model that is nearly there wants a third of the usual rate: at the healing's it moved away."""
_CHOICE_TOKENS = 16_384
"""Tokens that attentions are chosen on, at most: every round measures every attention that is left."""


def compress(
    model: nn.Module | ExportedProgram,
    data: Any,
    folder: str | os.PathLike[str],
    *,
    which: Which | None = None,
    max_kl_attention: float | None = None,
    heal_steps: int = 900,
    max_kl: float | None = None,
    depth: int | None = None,
    recover: str | None = "distill",
    polish_steps: int = 0,
    measure_tokens: int = 65_536,
    resume: bool = False,
    memory: int = DEFAULT_BOUND,
    distilling: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    **reading: Any,
) -> Compressed:
    """Remove attention, heal, plan, fuse, recover and export a torch model.

    Args:
        model: A decoder with every attention in place, or a program of torch.export of one.
        data: What `Calibration.of` takes; enough of it for healing.
        folder: Where every stage is written: .pt2 files, analysis.json, plan.json, stages.json, model.onnx.
        which: The attentions to remove, as `remove_attention` takes them; or
        max_kl_attention: the greatest KL that removing them may cost before healing, in nats; then they are
            chosen one by one.
        heal_steps: Steps of distillation from the stock model after that; 0 for none.
        max_kl: The greatest KL that fusing may cost, in nats, against the healed model.
        depth: Instead: how many FFNs are to be left in a row.
        recover: "fit", "distill", or None for no correction of the fused weights.
        polish_steps: Steps of distillation of the fused model from the stock model.
        measure_tokens: Tokens that everything but distillation is decided and fitted on, at most.
        resume: Go on with what a run with the same options left in `folder`.
        memory: Bytes of activations held in memory.
        distilling: Options of the healing, as `distill` takes them.
        progress: Called with a short text at every step.
        reading: What `Calibration.of` takes besides.

    Raises:
        InputError: The model, the data or an option cannot be used; nothing can be removed.
        VerificationError: A rewritten model does not compute what it should.
    """
    if (which is None) == (max_kl_attention is None):
        raise InputError("Give which attentions go, or max_kl_attention to have them chosen: one of the two.")
    calibration = Calibration.of(data, progress=progress, **reading)
    options = {
        "which": repr(which),
        "max_kl_attention": max_kl_attention,
        "heal_steps": heal_steps,
        "max_kl": max_kl,
        "depth": depth,
        "recover": recover,
        "polish_steps": polish_steps,
        "distilling": dict(distilling or {}),
        "tokens": calibration.tokens,
        "measure_tokens": measure_tokens,
        "seed": calibration.seed,
    }
    kept = Folder(Path(folder), options, resume=resume)
    stock = model if isinstance(model, ExportedProgram) else export_module(model, calibration.fit[0])
    with StageJudge(read_torch(stock, calibration.fit[0]), calibration.held_out, memory, progress) as judge:
        way = _Way(stock, calibration, kept, judge, memory, progress)
        way.measured = calibration.limit(measure_tokens)
        way.stage("stock model", lambda: stock)
        way.stage("attention removed", lambda: way.without(which, max_kl_attention))
        if heal_steps:
            way.stage("healed", lambda: way.distilled("healed", heal_steps, dict(distilling or {})))
        way.plan(max_kl, depth)
        way.stage("fused", lambda: way.fused(None))
        if recover is not None and way.found.plan is not None:
            way.stage("recovered", lambda: way.fused(recover))
        if polish_steps:
            way.stage("polished", lambda: way.distilled("polished", polish_steps, _POLISHING))
        way.export()
    return way.found


class _Way:
    """Where the run stands: `found.program` is the latest model, `unfused` the one that is fused."""

    def __init__(
        self,
        stock: ExportedProgram,
        calibration: Calibration,
        folder: Folder,
        judge: StageJudge,
        memory: int,
        progress: Progress,
    ) -> None:
        self.stock, self.calibration, self.folder, self.judge = stock, calibration, folder, judge
        self.memory, self.progress = memory, progress
        self.measured = calibration
        self.found = Compressed([], stock)
        self.unfused = stock

    def stage(self, name: str, make: Callable[[], ExportedProgram]) -> None:
        """Make a stage, or take what an earlier run left; keep it and judge it."""
        started = time.perf_counter()
        self.progress(name)
        self.found.program = self.folder.program(name, make)
        self._judge(name, read_torch(self.found.program, self.calibration.fit[0]), self.folder.path(name))
        self.found.seconds[name] = round(time.perf_counter() - started, 1)
        self.folder.write("stages.json", self.found.to_json())

    def without(self, which: Which | None, max_kl: float | None) -> ExportedProgram:
        """The stock model without the attentions that were asked for, or chosen under a KL budget."""
        chosen: Which
        if which is not None:
            chosen = which
        else:
            data = self.measured.limit(_CHOICE_TOKENS)
            choice = choose_attention(
                self.stock, data, max_kl=max_kl, memory=self.memory, progress=self.progress
            )
            if not choice.steps:
                raise InputError(f"No attention can be removed within {max_kl:g} nats: {choice.stopped}.")
            chosen = choice
        return remove_attention(self.stock, chosen)

    def distilled(self, name: str, steps: int, recipe: Mapping[str, Any]) -> ExportedProgram:
        """The latest model, taught by the stock model."""
        result = distill(
            self.found.program,
            self.stock,
            self.calibration,
            steps=steps,
            folder=self.folder.path(name).with_suffix(""),
            resume=self.folder.resume,
            progress=self.progress,
            **recipe,
        )
        self.found.notes += [f"{name}: {note}" for note in result.notes]
        assert isinstance(result.model, ExportedProgram)
        return result.model

    def plan(self, max_kl: float | None, depth: int | None) -> None:
        """Analyse the latest model and choose groups, measured end to end."""
        self.unfused = self.found.program
        found = analyze(self.unfused, self.measured, memory=self.memory, progress=self.progress)
        found.model = str(self.folder.path(self.found.stages[-1].name))
        self.found.analysis = found
        self.folder.write("analysis.json", found.to_json())
        if not found.segments:
            self.found.notes.append("nothing was fused: no two FFNs stand in a row")
            return
        self.found.plan = self._planned(found, max_kl, depth)
        self.folder.write("plan.json", self.found.plan.to_json())

    def _planned(self, found: Analysis, max_kl: float | None, depth: int | None) -> Plan:
        front = read_torch(self.unfused, self.calibration.fit[0])
        with Measurements(front, self.measured, memory=self.memory, progress=self.progress) as taken:
            return choose_plan(
                found,
                max_kl=max_kl,
                depth=depth,
                min_sqnr=12.0 if max_kl is None and depth is None else None,
                measure=lambda groups: taken.groups_kl(
                    match_plan(Plan(found.id, tuple(map(PlannedGroup, groups))), taken.found)
                ),
                whole_front=True,
                progress=self.progress,
            )

    def fused(self, recover: str | None) -> ExportedProgram:
        """The unfused model with the plan's groups fused."""
        if self.found.plan is None or not self.found.plan.groups:
            return self.unfused
        batch = self.calibration.fit[0]
        result, self.found.report = fuse(
            self.unfused,
            tuple(batch.values()),
            plan=self.found.plan,
            recover=recover,
            calibration=self.measured if recover is not None else None,
        )
        self.folder.write("report.json", self.found.report.to_json())
        return result

    def export(self) -> None:
        """Write the last model as ONNX, and judge the file in ONNX Runtime."""
        path = self.folder.root / "model.onnx"
        self.progress("exporting")
        started = time.perf_counter()
        export_program(self.found.program, path, force=True)
        with open_model(path, self.calibration) as front:
            self._judge("exported", front, path)
        self.found.onnx = str(path)
        self.found.seconds["exported"] = round(time.perf_counter() - started, 1)
        self.folder.write("stages.json", self.found.to_json())

    def _judge(self, name: str, front: Runnable, path: Path) -> None:
        judged = self.judge.judge(front)
        self.found.stages.append(
            Stage(
                name=name,
                loss=judged.loss,
                loss_error=judged.loss_error,
                kl=judged.divergence.kl,
                kl_error=judged.divergence.standard_error,
                depth=len(stream_updates(front.view)),
                file=str(path),
            )
        )
