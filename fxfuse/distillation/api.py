"""`distill`: a student learns the teacher's logits, judged on held-out windows, resumable after a kill."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxfuse.distillation.checkpoints import Checkpoints, fingerprint
from fxfuse.distillation.copies import TorchModel
from fxfuse.distillation.recipe import Recipe
from fxfuse.distillation.run import Run
from fxfuse.distillation.shares import Shares
from fxfuse.distillation.stopping import Stopping
from fxfuse.distillation.student import Student, write_back
from fxfuse.distillation.subjects import Subject
from fxfuse.distillation.windows import Windows
from fxfuse.divergence import Divergence
from fxfuse.errors import InputError
from fxfuse.progress import Progress, silent

if TYPE_CHECKING:
    from fxfuse.calibration import Calibration

__all__ = ["Distilled", "distill"]


@dataclass(frozen=True)
class Distilled:
    """What `distill` made.

    model: of the student's kind and shapes. start, end: the divergence from the teacher on held-out windows,
    before and after. steps: that were made. seconds: they took, over all sittings. resumed_at: the step this
    sitting began at, None where nothing was resumed. notes: sentences about what a user should know.
    """

    model: TorchModel = field(repr=False)
    start: Divergence
    end: Divergence
    steps: int
    seconds: float
    resumed_at: int | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"held-out {self.start} before, {self.end} after {self.steps} steps in {self.seconds:.0f} s"


def distill(
    student: TorchModel,
    teacher: TorchModel,
    data: Any,
    *,
    folder: str | os.PathLike[str] | None = None,
    every: int = 100,
    resume: bool = False,
    progress: Progress = silent,
    **recipe: Any,
) -> Distilled:
    """Teach `student` the logits of `teacher`: KL(teacher || student) of every token, and labels if asked.

    Neither model is written to. A student that ends further from the teacher than it began is given back as
    it was, and a note says so. With a folder, the run is kept there every so many steps, and once more on
    Ctrl-C or SIGTERM; the same call with `resume=True` goes on, to the same bits as a run that was never
    stopped where torch and its number of threads are the same.

    Args:
        student: An nn.Module, a GraphModule or an ExportedProgram that gives logits.
        teacher: The same kinds; may be one model with the student before it was changed.
        data: A Calibration, or what `Calibration.of` takes.
        folder: Where checkpoints are kept; it is made, and left to the caller at the end.
        every: Steps between two checkpoints.
        resume: Go on from the checkpoint in `folder`, if there is one.
        progress: Called with a text at every step.
        recipe: The fields of `Recipe`: steps, batch_size, learning_rate, optimizer, label_weight,
            temperature, trainable, precision, seed, judge_every, judge_tokens, warmup.

    Raises:
        InputError: An option makes no sense; the models or the data do not fit together; too little data; a
            checkpoint of another run, or one in the way.
        FxfuseError: The loss is not finite at some step, or the disk is full.
        KeyboardInterrupt: It was stopped; the message says where it stands.
    """
    options = Recipe.of(recipe)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InputError(f"every must be a whole number of steps above 0, not {every!r}.")
    calibration = _read(data, options)
    windows = Windows(calibration.fit, options.batch_size, options.seed)
    master, learner = Subject(teacher, "teacher"), Student(student, options.trainable)
    _, classes = (_vocabulary(each, calibration) for each in (master, learner))
    checkpoints = Checkpoints(folder)
    made_of = fingerprint(learner, master, calibration.fit, calibration.held_out, options)
    saved = checkpoints.read(made_of, resume)
    with Shares(master, learner, options) as shares, Stopping(folder is not None) as stopping:
        run = Run(shares, windows, calibration.held_out, classes, stopping, progress)
        try:
            run.start(saved)
            _learn(run, checkpoints, made_of, every)
        except KeyboardInterrupt as error:
            error.args = (_stopped(run, checkpoints, made_of),)
            raise
        finally:
            checkpoints.tidy()
    model = student if run.best is None else write_back(student, run.best)
    notes = (*calibration.notes, *run.notes())
    resumed_at = saved["step"] if saved else None
    return Distilled(model, run.first, run.end, options.steps, run.seconds, resumed_at, notes)


def _read(data: Any, recipe: Recipe) -> Calibration:
    from fxfuse.calibration import Calibration

    return Calibration.of(data, batch_size=recipe.batch_size, seed=recipe.seed)


def _vocabulary(subject: Subject, calibration: Calibration) -> int:
    """The number of classes of a model; refuses token ids that it has no embedding for.

    Raises:
        InputError: A token id is outside the vocabulary, or the model does not run on the data.
    """
    from fxfuse.calibration.batches import IDS
    from fxfuse.calibration.vocabulary import check_vocabulary

    batch = {name: value[: subject.rows or 1] for name, value in calibration.fit[0].items()}
    if IDS in batch:
        batch[IDS] = torch.zeros_like(batch[IDS])
    with torch.no_grad():
        classes = subject.logits(batch).shape[-1]
    tables = [each.num_embeddings for each in subject.module.modules() if isinstance(each, nn.Embedding)]
    check_vocabulary(calibration, max([classes, *tables]))
    return classes


def _learn(run: Run, checkpoints: Checkpoints, made_of: dict[str, Any], every: int) -> None:
    """Go to the last step, and keep where the run stands on the way and there."""
    while not run.done:
        run.advance()
        if run.step % every == 0 or run.done:
            checkpoints.write({**run.state(), "made_of": made_of})
        run.stopping.safe_point()
    run.finish()


def _stopped(run: Run, checkpoints: Checkpoints, made_of: dict[str, Any]) -> str:
    """Keep what can be kept, and say where the run stands."""
    place = f"step {run.step} of {run.recipe.steps}"
    if checkpoints.folder is None or not run.started:
        return f"stopped at {place}; nothing was written"
    if not run.stopping.asked:
        return f"stopped at {place}; what was kept before it is in {checkpoints.folder}"
    checkpoints.write({**run.state(), "made_of": made_of})
    return f"{place} is kept in {checkpoints.folder}: resume goes on from there"
