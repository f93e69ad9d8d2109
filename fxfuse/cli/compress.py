"""`fxfuse compress`: from a stock torch model to a fused ONNX file, each stage judged on held-out data."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fxfuse.cli import data
from fxfuse.cli.codes import DONE
from fxfuse.errors import InputError

if TYPE_CHECKING:
    from fxfuse.compression.records import Compressed
    from fxfuse.progress import Progress

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "the whole way: remove attention, heal, plan, fuse, recover, export"
DESCRIPTION = (
    "Take a stock torch model the whole way: attentions are left out under a KL budget, the model is healed "
    "by distillation from itself as it was, groups of FFNs are chosen and fused, their weights corrected, "
    "and the result is exported to ONNX. Every stage is kept in a folder and judged on held-out data. MODEL "
    "is a .pt2 file of torch.export, or module:function for a Python function without arguments that "
    "returns a torch model and a tuple of its example inputs."
)
EPILOG = (
    "exit codes: 0 done; 1 verification failed; 2 bad arguments or input; 130 and 143 interrupted, to be "
    "resumed"
)


def add_arguments(found: argparse.ArgumentParser) -> None:
    """The model, the folder, the data and what each step may cost."""
    found.add_argument("model", metavar="MODEL", help="the stock model, with every attention in place")
    found.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="where every stage is written"
    )
    found.add_argument("--resume", action="store_true", help="go on with the run that FOLDER holds")
    data.add_arguments(found, required=True)
    found.set_defaults(tokens=4 << 20)
    removal = found.add_argument_group("removing attention").add_mutually_exclusive_group(required=True)
    removal.add_argument(
        "--remove-kl",
        type=float,
        metavar="X",
        help="choose attentions while leaving them out costs at most X nats",
    )
    removal.add_argument("--layers", metavar="LIST", help='or these layers, such as "5-10,12"')
    fusing = found.add_argument_group("fusing")
    amount = fusing.add_mutually_exclusive_group()
    amount.add_argument("--max-kl", type=float, metavar="X", help="fusing may cost at most X nats")
    amount.add_argument("--depth", type=int, metavar="N", help="or leave N FFNs in a row")
    fusing.add_argument(
        "--recover", choices=("fit", "distill", "none"), default="distill",
        help="how fused weights are corrected (default: %(default)s)",
    )  # fmt: skip
    training = found.add_argument_group("distillation")
    training.add_argument(
        "--heal-steps",
        type=int,
        default=900,
        metavar="N",
        help="after attention is removed (default: %(default)s)",
    )
    training.add_argument(
        "--polish-steps", type=int, default=0, metavar="N", help="of the fused model (default: %(default)s)"
    )
    training.add_argument("--optimizer", metavar="NAME", help="adamw (default) or muon")


def run(options: argparse.Namespace, _told: Callable[[BaseException], str]) -> int:
    """Go the whole way and show the stages. Returns the exit code."""
    from fxfuse.screen import show_steps, write_out

    try:
        with show_steps() as progress:
            found = _compress(options, progress)
    except KeyboardInterrupt as error:
        error.args = (f"the stages so far are in {options.output}: go on with --resume",)
        raise
    write_out(f"{found}\n")
    return DONE


def _compress(options: argparse.Namespace, progress: Progress) -> Compressed:
    progress("starting")
    from fxfuse.compression.run import compress
    from fxfuse.distillation.memory import keep_freed_memory
    from fxfuse.frontends.opening import load_torch

    if options.heal_steps < 0 or options.polish_steps < 0:
        raise InputError("Steps of distillation are 0 or more: check --heal-steps and --polish-steps.")
    keep_freed_memory()
    return compress(
        load_torch(options.model),
        data.read(options, progress=progress),
        options.output,
        which=options.layers,
        max_kl_attention=options.remove_kl,
        heal_steps=options.heal_steps,
        max_kl=options.max_kl,
        depth=options.depth,
        recover=None if options.recover == "none" else options.recover,
        polish_steps=options.polish_steps,
        resume=options.resume,
        memory=options.memory,
        distilling={"optimizer": options.optimizer} if options.optimizer else {},
        progress=progress,
    )
