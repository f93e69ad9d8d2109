"""`fxfuse distill`: teach a changed torch model the logits of the original, and write it as a .pt2 file."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfuse.cli import data
from fxfuse.cli.codes import DONE, NOTHING
from fxfuse.errors import InputError

if TYPE_CHECKING:
    from fxfuse.distillation import Distilled
    from fxfuse.progress import Progress

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "teach a changed torch model the logits of the original"
DESCRIPTION = (
    "Train STUDENT to give the logits that TEACHER gives (their KL divergence for every token), judge it on "
    "held-out windows before and after, and write it. Both are .pt2 files of torch.export, or "
    "module:function for a Python function without arguments that returns a torch model and a tuple of its "
    "example inputs. A run that was killed goes on with --resume."
)
EPILOG = (
    "exit codes: 0 written; 1 the loss is not finite; 2 bad arguments or input; 3 nothing written, as the "
    "student came no nearer; 130 and 143 interrupted, to be resumed"
)
TOKENS = 4 << 20


def add_arguments(found: argparse.ArgumentParser) -> None:
    """The models, the data and the recipe; what is left out keeps the default of `Recipe`."""
    found.add_argument("student", metavar="STUDENT", help="the model that learns")
    found.add_argument("--teacher", required=True, metavar="TEACHER", help="the model it learns from")
    found.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT.pt2", help="where it is written"
    )
    found.add_argument("--force", action="store_true", help="overwrite the output")
    data.add_arguments(found, required=True)
    found.set_defaults(tokens=TOKENS)
    _add_recipe(found.add_argument_group("recipe: how it learns"))
    stopping = found.add_argument_group("stopping and going on")
    stopping.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    stopping.add_argument(
        "--checkpoint", type=Path, metavar="FOLDER",
        help="where the run is kept until the output is written (default: OUT.pt2.checkpoint)",
    )  # fmt: skip
    stopping.add_argument(
        "--every",
        type=int,
        default=100,
        metavar="N",
        help="steps between two checkpoints (default: %(default)s)",
    )


def _add_recipe(group: Any) -> None:
    group.add_argument("--steps", type=int, metavar="N", help="updates of the weights (default: 500)")
    group.add_argument("--learning-rate", type=float, metavar="X", help="its peak (default: the optimizer's)")
    group.add_argument("--optimizer", metavar="NAME", help="adamw, or muon for matrices inside the layers")
    group.add_argument(
        "--label-weight",
        type=float,
        metavar="X",
        help="add so much of the next-token cross entropy (default: 0)",
    )
    group.add_argument("--temperature", type=float, metavar="X", help="of both models' logits (default: 1)")
    group.add_argument("--trainable", metavar="RE", help="only parameters whose name matches learn")
    group.add_argument("--precision", metavar="NAME", help="bf16 (autocast), fp32, or auto (default)")
    group.add_argument(
        "--warmup", type=float, metavar="SHARE", help="of the steps with rising rate (default: 0.05)"
    )
    group.add_argument(
        "--judge-every",
        type=int,
        metavar="N",
        help="steps between looks at held-out windows; the best is kept",
    )
    group.add_argument(
        "--judge-tokens", type=int, metavar="N", help="held-out tokens to judge by, at most (default: 65536)"
    )


def run(options: argparse.Namespace, _told: Callable[[BaseException], str]) -> int:
    """Distil, write and show. Returns the exit code."""
    from fxfuse.screen import show_steps, write_out

    try:
        with show_steps() as progress, _in_flags():
            result = _distill(options, progress)
    except KeyboardInterrupt as error:
        told = str(error) or "nothing was written"
        command = options.typed if options.resume else f"{options.typed} --resume"
        error.args = (told.replace(": resume goes on from there", f": go on with {command}"),)
        raise
    written = result.end.kl < result.start.kl
    write_out(_table(result) + (f"written: {options.output}\n" if written else "nothing was written\n"))
    return DONE if written else NOTHING


def _distill(options: argparse.Namespace, progress: Progress) -> Distilled:
    """Distil and write, unless the student did not come nearer."""
    progress("starting")
    from fxfuse.distillation import Recipe, distill
    from fxfuse.distillation.checkpoints import Checkpoints
    from fxfuse.distillation.memory import keep_freed_memory
    from fxfuse.frontends.opening import load_torch
    from fxfuse.frontends.programs import check_program_place

    given = {each.name: getattr(options, each.name) for each in fields(Recipe)}
    recipe = {name: value for name, value in given.items() if value is not None}
    Recipe.of(recipe)  # before anything that takes time
    inputs = [Path(each) for each in (options.student, options.teacher, options.data)]
    check_program_place(options.output, inputs=inputs, force=options.force)
    keep_freed_memory()
    student, teacher = load_torch(options.student), load_torch(options.teacher)
    calibration = data.read(options, progress=progress)
    folder = options.checkpoint or options.output.with_name(f"{options.output.name}.checkpoint")
    result = distill(
        student, teacher, calibration,
        folder=folder, every=options.every, resume=options.resume, progress=progress, **recipe,
    )  # fmt: skip
    if result.end.kl < result.start.kl:
        progress("writing")
        _write(result.model, calibration.fit[0], options, inputs)
    Checkpoints(folder).remove()
    return result


def _write(model: Any, batch: Any, options: argparse.Namespace, inputs: list[Path]) -> None:
    from torch.export import ExportedProgram

    from fxfuse.frontends.programs import save_program
    from fxfuse.frontends.torch_model import export_module

    if not isinstance(model, ExportedProgram):
        device = next(model.parameters()).device
        model = export_module(model, {name: tensor.to(device) for name, tensor in batch.items()})
    save_program(model, options.output, inputs=inputs, force=options.force)


def _table(result: Distilled) -> str:
    from fxfuse.progress import duration

    lines = [f"{'':8}{'held-out KL, nats':24}same first choice"]
    for name, each in (("before", result.start), ("after", result.end)):
        lines.append(f"{name:8}{f'{each.kl:.4g} ± {each.standard_error:.2g}':24}{each.top1_agreement:.1%}")
    resumed = f", resumed at step {result.resumed_at}" if result.resumed_at is not None else ""
    lines.append(
        f"{result.steps} steps in {duration(result.seconds)}{resumed}; {result.end.tokens:,} tokens judged"
    )
    return "".join(f"{line}\n" for line in (*lines, *result.notes))


@contextlib.contextmanager
def _in_flags() -> Iterator[None]:
    """Name an option in a sentence as the command line calls it."""
    try:
        yield
    except InputError as error:
        from fxfuse.distillation import Recipe

        names = [each.name for each in fields(Recipe)]
        plain, joined = "|".join(names), "|".join(name for name in names if "_" in name)
        text = re.sub(rf"\b(?:{plain})(?= must| is no|=| ')|\b(?:{joined})\b", _flag, str(error))
        raise InputError(text) from error


def _flag(match: re.Match[str]) -> str:
    return f"--{match[0].replace('_', '-')}"
