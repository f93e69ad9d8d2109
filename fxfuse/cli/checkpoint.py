"""`fxfuse checkpoint`: fuse a Hugging Face checkpoint of any size on disk."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fxfuse.cli import data
from fxfuse.cli.codes import DONE
from fxfuse.cli.paths import named_path
from fxfuse.errors import InputError

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "fuse a Hugging Face checkpoint on disk, however large"
DESCRIPTION = (
    "Write the fused form of a checkpoint of safetensors files tensor by tensor, in a memory of some hundred "
    "megabytes. Groups of FFNs become wide FFNs, layers are numbered anew, and tokenizer, generation config "
    "and every other file go along. OUT appears at the end, whole; after a kill the same command goes on "
    "where it was."
)
EPILOG = (
    "exit codes: 0 done; 1 failed, and nothing is left; 2 bad arguments or input; 3 nothing to fuse; 130 and "
    "143 interrupted, to be gone on with by the same command"
)


def add_arguments(found: argparse.ArgumentParser) -> None:
    """Both folders, the groups, and how the result is written."""
    found.add_argument(
        "folder", type=named_path, metavar="IN", help="folder with config.json and safetensors files"
    )
    found.add_argument(
        "output", type=named_path, nargs="?", metavar="OUT", help="folder to make; not needed with --dry-run"
    )
    groups = found.add_argument_group("which FFNs become one").add_mutually_exclusive_group(required=True)
    groups.add_argument("--plan", type=Path, metavar="FILE", help="a plan of fxfuse plan")
    groups.add_argument("--groups", metavar="LIST", help='first and last layers, such as "42-50,53-69"')
    groups.add_argument(
        "--auto", action="store_true", help="every run without attention between; nothing is measured"
    )
    found.add_argument("--max-group", type=int, metavar="N", help="with --auto: most FFNs in a group")
    found.add_argument(
        "--remove", metavar="LIST",
        help="leave out the attention of these layers before, such as 5-10,12 (fxfuse remove chooses some)",
    )  # fmt: skip
    recovery = found.add_argument_group("recovery: corrected weights, of the same shapes, for less loss")
    recovery.add_argument(
        "--recover", choices=("fit", "distill"),
        help="correct the weights of the groups on --data, block by block from disk: in closed form, or from "
        "there on step by step",
    )  # fmt: skip
    recovery.add_argument(
        "--provider", choices=["auto", "cuda", "cpu"], default="auto", help="where recovery computes"
    )
    data.add_arguments(found)
    written = found.add_argument_group("how it is written")
    written.add_argument(
        "--dialect", metavar="NAME",
        help="nemotron-nas, per_layer_config or anymodel (default: the source's own, else per_layer_config)",
    )  # fmt: skip
    written.add_argument(
        "--shard-size", type=data.memory, default=5_000_000_000, metavar="SIZE",
        help="most bytes of a file that holds several tensors (default: 5GB)",
    )  # fmt: skip
    written.add_argument(
        "--dry-run", action="store_true", help="say what would be written and how large, and stop"
    )
    written.add_argument(
        "--restart", action="store_true", help="begin anew instead of going on with what a killed run left"
    )
    written.add_argument("--force", action="store_true", help="replace a checkpoint that OUT holds")


def run(options: argparse.Namespace, _told: Callable[[BaseException], str]) -> int:
    """Fuse and show. Returns the exit code."""
    from fxfuse.screen import show_steps, write_out

    if options.output is None and not options.dry_run:
        raise InputError("Nothing says where to write: give OUT, the folder to make, or --dry-run.")
    if (options.recover is None) != (options.data is None):
        given, missing = ("--data", "--recover") if options.recover is None else ("--recover", "--data")
        raise InputError(f"{given} needs {missing} beside it: recovery corrects weights on data.")
    try:
        with show_steps() as progress:
            progress("starting")
            from fxfuse.checkpoints.api import fuse_checkpoint  # takes seconds

            report = fuse_checkpoint(
                options.folder,
                options.output,
                groups=options.groups,
                plan=options.plan,
                auto=options.auto,
                max_group=options.max_group,
                remove=_removed(options),
                dialect=options.dialect,
                shard_size=options.shard_size,
                dry_run=options.dry_run,
                resume=not options.restart,
                force=options.force,
                provider=options.provider,
                progress=progress,
                **_recovery(options, progress),
            )
    except KeyboardInterrupt as error:
        error.args = ("the same command goes on where it was",)
        raise
    write_out(f"{report}\n")
    return DONE


def _removed(options: argparse.Namespace) -> list[int] | None:
    """The layers whose attention is left out."""
    from fxfuse.removal.which import parse_layers

    return None if options.remove is None else parse_layers(options.remove)


def _recovery(options: argparse.Namespace, progress: Callable[[str], None]) -> dict[str, Any]:
    """What `fuse_checkpoint` is told of recovery."""
    if options.recover is None:
        return {}
    from fxfuse.recovery import RecoveryOptions

    wish = RecoveryOptions(method=options.recover, seed=options.seed, activations=options.memory)
    progress("reading the data")
    return {"recover": wish, "calibration": data.read(options, progress=progress)}
