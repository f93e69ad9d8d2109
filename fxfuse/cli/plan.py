"""`fxfuse plan`: choose groups from an analysis, for every other command to take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfuse.budget import Budget
from fxfuse.cli import data
from fxfuse.cli.codes import DONE, NOTHING
from fxfuse.errors import InputError
from fxfuse.report_file import check_report_place

if TYPE_CHECKING:
    from fxfuse.planning.records import Plan

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "choose groups from an analysis"
DESCRIPTION = (
    "Choose which blocks to fuse from an analysis: show the front of loss against depth, or against the "
    "latency that you measured, and write the groups of one point as a plan: the most fused point, with "
    "--latency the fastest, that keeps --min-sqnr in every group, and --max-kl end to end where it is given; "
    "or the point of --depth. With --model and --data the plan is measured, and repaired where the "
    "prediction was wrong."
)
EPILOG = (
    "exit codes: 0 written; 1 internal error; 2 bad arguments or input; 3 no group is within the budget, and "
    "the plan that is written fuses nothing"
)


def add_arguments(found: argparse.ArgumentParser) -> None:
    """The analysis, the bounds, where the plan goes, and what it is measured on."""
    found.add_argument("analysis", type=Path, metavar="ANALYSIS.json", help="what fxfuse analyze wrote")
    found.add_argument(
        "-o", "--output", type=Path, metavar="PLAN.json", help="write the plan; without it, only show it"
    )
    _add_budget(found)
    measuring = found.add_argument_group("measuring: the plan is predicted without it")
    measuring.add_argument(
        "--model",
        metavar="MODEL",
        help="the model: an ONNX or .pt2 file, a checkpoint's folder, or module:function",
    )
    measuring.add_argument(
        "--candidates", type=int, default=4, metavar="N",
        help="how many near ties of one depth are measured (default: %(default)s)",
    )  # fmt: skip
    measuring.add_argument(
        "--whole-front", action="store_true", help="measure every point of the front, not only the choice"
    )
    data.add_arguments(found)


def _add_budget(found: argparse.ArgumentParser) -> None:
    defaults = Budget()
    budget = found.add_argument_group("budget: what loss and what groups are allowed")
    point = budget.add_mutually_exclusive_group()
    point.add_argument("--max-kl", type=float, metavar="X", help="greatest KL of the logits, in nats")
    point.add_argument("--depth", type=int, metavar="N", help="leave N FFNs in a row, with the least loss")
    loss = budget.add_mutually_exclusive_group()
    loss.add_argument(
        "--min-sqnr", type=float, metavar="DB", default=defaults.min_sqnr,
        help="least signal-to-noise ratio of each group's update in dB (default: %(default)g)",
    )  # fmt: skip
    loss.add_argument(
        "--no-budget", action="store_const", const=None, dest="min_sqnr", help="no bound on a group's ratio"
    )
    budget.add_argument(
        "--latency", type=Path, metavar="FILE.json",
        help='milliseconds that you measured, such as {"1": 0.21, "2": 0.33} by the number of blocks, '
        '"width 5632" by width, or a group\'s name',
    )  # fmt: skip
    data.add_target(
        found,
        "all groups are timed at those, instead of --latency, and the fastest plan within the budget "
        "is taken",
    )
    budget.add_argument("--max-group", type=int, metavar="N", help="most blocks in one group")
    budget.add_argument(
        "--max-group-memory", type=data.memory, metavar="SIZE",
        help="most memory that one group's weights may take, such as 2GiB",
    )  # fmt: skip
    budget.add_argument("--include", metavar="RE", help="fuse only blocks whose name matches")
    budget.add_argument("--exclude", metavar="RE", help="leave out blocks whose name matches")


def run(options: argparse.Namespace, _told: Callable[[BaseException], str]) -> int:
    """Plan, show and write. Returns the exit code."""
    if (options.model is None) != (options.data is None):
        raise InputError(
            "--model and --data belong together: give both to measure the plan, or neither to predict it."
        )
    if options.output is not None:
        check_report_place(options.output, _taken(options), "plan")
    from fxfuse.screen import show_drawing, show_steps, write_out

    with show_steps() as progress:
        found = _plan(options, progress)  # takes seconds, with something on the screen
    from fxfuse.planning.files import write_plan
    from fxfuse.planning.table import draw_plan

    found.command = options.typed
    if options.output is not None:
        write_plan(options.output, found)
    show_drawing(draw_plan(found))
    if options.output is not None:
        write_out(f"\nplan: {options.output}\n")
    return DONE if found.groups else NOTHING


def _plan(options: argparse.Namespace, progress: Callable[[str], None]) -> Plan:
    from fxfuse.planning.choose import plan

    reading: dict[str, Any] = {}
    latency = options.latency
    if (wanted := data.target(options)) is not None:
        from fxfuse.timing.groups import time_groups

        if latency is not None or options.depth is not None:
            other = "--latency" if latency is not None else "--depth"
            raise InputError(f"--target-tokens and {other} both say what is chosen: give one of the two.")
        source = options.model if options.model is not None and _is_file(options.model) else options.analysis
        latency = time_groups(source, wanted, max_group=options.max_group, progress=progress)
    if options.data is not None:
        reading["data"] = data.read(options, progress=progress)
    return plan(
        options.analysis,
        max_kl=options.max_kl,
        depth=options.depth,
        min_sqnr=options.min_sqnr,
        latency=latency,
        max_group=options.max_group,
        max_group_bytes=options.max_group_memory,
        include=options.include,
        exclude=options.exclude,
        model=options.model,
        candidates=options.candidates,
        whole_front=options.whole_front,
        memory=options.memory,
        progress=progress,
        **reading,
    )


def _is_file(model: str) -> bool:
    """Whether the model's own graph tells what is timed; an analysis tells sizes alone."""
    return Path(model).suffix in (".onnx", ".pt2")


def _taken(options: argparse.Namespace) -> list[Path]:
    """The files that the plan must not take."""
    given = (options.analysis, options.latency, options.data, options.model and Path(options.model))
    return [each for each in given if each is not None]
