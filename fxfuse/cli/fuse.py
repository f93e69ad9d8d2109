"""`fxfuse fuse`: make the FFN chains of an ONNX model wide FFNs, verify them and write the result."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfuse.budget import Budget
from fxfuse.cli import data
from fxfuse.cli.codes import DONE, NOTHING
from fxfuse.cli.programs import fuse_program, is_program
from fxfuse.errors import FxfuseError, InputError
from fxfuse.files import default_output
from fxfuse.quantisation.options import Quantise
from fxfuse.report_file import check_report_place, write_report

if TYPE_CHECKING:
    from fxfuse.report import Report

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "fuse the FFN chains of an ONNX model or a torch.export program"
DESCRIPTION = (
    "Find runs of norm-FFN residual blocks in an ONNX model, make each run one wide FFN, verify it in ONNX "
    "Runtime and write the result. A .pt2 file of torch.export is fused in torch, measured on --data."
)
EPILOG = (
    "exit codes: 0 written; 1 verification failed; 2 bad arguments or input; 3 nothing to fuse, or nothing "
    "within budget"
)


def add_arguments(found: argparse.ArgumentParser) -> None:
    """The arguments; their names are the fields of `Budget` wherever they mean the same."""
    defaults = Budget()
    found.add_argument(
        "model", type=Path, metavar="MODEL", help="an ONNX file, its external data beside it; or a .pt2 file"
    )
    found.add_argument("-o", "--output", type=Path, metavar="OUT", help="default: MODEL.fused.onnx or .pt2")
    found.add_argument(
        "--inputs", action="append", metavar="FILE.npz", default=None,
        help="a sample to measure on, one array per graph input; may be repeated (default: drawn)",
    )  # fmt: skip
    budget = found.add_argument_group("budget: what loss is allowed")
    loss = budget.add_mutually_exclusive_group()
    loss.add_argument(
        "--min-sqnr", type=float, metavar="DB", default=defaults.min_sqnr,
        help="least signal-to-noise ratio of each group's update in dB (default: %(default)g)",
    )  # fmt: skip
    loss.add_argument(
        "--no-budget", action="store_const", const=None, dest="min_sqnr", help="fuse whatever is legal"
    )
    budget.add_argument(
        "--max-kl", type=float, metavar="X", help="greatest KL divergence of the logits, in nats"
    )
    budget.add_argument("--max-group", type=int, metavar="N", help="most blocks in one group")
    budget.add_argument(
        "--plan", type=Path, metavar="PLAN.json",
        help="fuse the groups of a plan from fxfuse plan, instead of those that the budget would choose",
    )  # fmt: skip
    budget.add_argument("--include", metavar="RE", help="fuse only blocks whose name matches")
    budget.add_argument("--exclude", metavar="RE", help="leave out blocks whose name matches")
    budget.add_argument(
        "--requantize",
        action="store_true",
        help="let quantised weights be quantised again where gains have to be folded into them",
    )
    recovery = found.add_argument_group("recovery: corrected weights, of the same shapes, for less loss")
    recovery.add_argument(
        "--recover", choices=("fit", "distill"),
        help="correct the weights of each group on --data: in closed form, or by local distillation as well",
    )  # fmt: skip
    data.add_arguments(found, seed=False)
    smaller = found.add_argument_group("quantising: smaller weights, after fusing and under the same budget")
    smaller.add_argument(
        "--quantize", choices=("int8", "int4"),
        help="store the weights of matrix products so; a group that would fall under --min-sqnr stays float",
    )  # fmt: skip
    smaller.add_argument(
        "--quantize-exclude",
        metavar="RE",
        help="leave products float whose layer path, name or weight's name matches",
    )
    data.add_target(
        found, "groups are timed at those on --provider, and fused, in the fastest form, where that pays"
    )
    running = found.add_argument_group("running")
    running.add_argument(
        "--provider", choices=("auto", "cuda", "cpu"), default="auto", help="ONNX Runtime's provider"
    )
    running.add_argument(
        "--seed",
        type=int,
        default=defaults.seed,
        metavar="N",
        help="for inputs that are drawn, and the order of calibration windows (default: %(default)s)",
    )
    running.add_argument("--report", type=Path, metavar="FILE.json", help="write what was found and measured")
    running.add_argument("--dry-run", action="store_true", help="do everything but write the model")
    running.add_argument("--force", action="store_true", help="overwrite the output")


def run(options: argparse.Namespace, told: Callable[[BaseException], str]) -> int:
    """Fuse, report and show; `told` says an error as the command line does. Returns the exit code."""
    from fxfuse.report import Report

    report = Report(model=str(options.model))
    if options.report is not None:
        check_report_place(options.report, _places(options))
    try:
        _fuse(options, report)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            error.args = ("nothing was written",)
        report.error = told(error)
        if options.report is not None:
            with contextlib.suppress(FxfuseError):
                write_report(options.report, report)
        raise
    if options.report is not None:
        write_report(options.report, report)
    _show(report, options.dry_run)
    return DONE if report.groups else NOTHING


def _fuse(options: argparse.Namespace, report: Report) -> None:
    budget = {each.name: getattr(options, each.name) for each in fields(Budget)}
    Budget.of(budget)  # before anything that takes time
    Quantise.of(options.quantize, options.quantize_exclude)
    wanted = data.target(options)
    if is_program(options.model):
        from fxfuse.screen import show_steps

        with show_steps() as progress:
            fuse_program(options, report, budget, progress)
        return
    if (options.recover is None) != (options.data is None):
        given, missing = ("--data", "--recover") if options.recover is None else ("--recover", "--data")
        raise InputError(f"{given} needs {missing} beside it: recovery corrects weights on data.")
    from fxfuse.screen import show_steps

    # Where other programs use the cores too, threads that wait busily take most of the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with show_steps() as progress:
        from fxfuse.frontends.arena import share_memory
        from fxfuse.onnx_api import fuse_onnx  # takes seconds, with something on the screen

        share_memory()
        fuse_onnx(
            options.model,
            options.output,
            inputs=options.inputs,
            plan=options.plan,
            **_recovery(options, progress),
            quantize=options.quantize,
            quantize_exclude=options.quantize_exclude,
            target=wanted,
            provider=options.provider,
            force=options.force,
            dry_run=options.dry_run,
            progress=progress,
            report=report,
            **budget,
        )


def _recovery(options: argparse.Namespace, progress: Callable[[str], None]) -> dict[str, Any]:
    """What `fuse_onnx` is told of recovery."""
    if options.recover is None:
        return {}
    from fxfuse.frontends.opening import calibration_for
    from fxfuse.recovery import RecoveryOptions

    wish = RecoveryOptions(method=options.recover, seed=options.seed, activations=options.memory)
    found = calibration_for(options.model, options.data, progress, **data.wishes(options))
    return {"recover": wish, "calibration": found}


def _show(report: Report, dry_run: bool) -> None:
    from fxfuse.screen import show_report

    show_report(report, dry_run)


def _places(options: argparse.Namespace) -> Iterator[Path]:
    """The files that the report must not take, which may not be there yet."""
    if options.plan is not None:
        yield options.plan
    for each in (options.model, options.output or default_output(options.model)):
        yield each
        yield each.parent / f"{each.name}.data"
