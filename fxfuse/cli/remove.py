"""`fxfuse remove`: take attentions out of a model, those that are named or those that cost least."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfuse.cli import data
from fxfuse.cli.codes import DONE, NOTHING
from fxfuse.cli.paths import named_path
from fxfuse.errors import InputError
from fxfuse.report_file import check_report_place, write_text

if TYPE_CHECKING:
    from fxfuse.progress import Progress
    from fxfuse.removal.records import Choice, Removal

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "take attentions out of a model, so that chains of FFNs stand in a row"
DESCRIPTION = (
    "Write a model without some of its attentions: the residual branch is bypassed, its norm and weights go, "
    "and so do the past and present keys and values that only it used. MODEL is an ONNX file; the folder of "
    "a Hugging Face checkpoint, which is read block by block and need not fit into memory; or a .pt2 file of "
    "torch.export, or module:function for a Python function that returns a torch model and its example "
    "inputs, and then a .pt2 file is written."
)
EPILOG = "exit codes: 0 written; 1 verification failed; 2 bad arguments or input; 3 none within budget"


def add_arguments(found: argparse.ArgumentParser) -> None:
    """The model, which attentions go, the data to choose on, and where it goes."""
    found.add_argument("model", metavar="MODEL", help="the model, in one of the forms above")
    found.add_argument(
        "-o", "--output", type=named_path, metavar="OUT", help="default: MODEL.less.onnx, or FOLDER-less"
    )
    which = found.add_argument_group("which attentions go").add_mutually_exclusive_group(required=True)
    which.add_argument("--layers", metavar="LIST", help="those of these layers, such as 5-10,12")
    which.add_argument("--number", type=int, metavar="N", help="N of them, the cheapest first")
    which.add_argument("--max-kl", type=float, metavar="X", help="as many as cost at most X nats together")
    which.add_argument(
        "--decisions", type=Path, metavar="CONFIG.json",
        help="those that another tool chose: drop_attn_list (LLM-Drop), block_configs (nemotron-nas) or "
        "per_layer_config (transformers)",
    )  # fmt: skip
    choosing = found.add_argument_group("choosing, with --number and --max-kl")
    choosing.add_argument("--among", metavar="LIST", help="choose among these layers only")
    choosing.add_argument("--first", action="store_true", help="the first attention may go too")
    choosing.add_argument(
        "--patience", type=float, metavar="F", default=1.5,
        help="prefer one that makes a run longer while it costs at most F times the cheapest "
        "(default: %(default)s)",
    )  # fmt: skip
    data.add_arguments(found)
    found.add_argument("--renumber", action="store_true", help="number the cache that is left without gaps")
    found.add_argument(
        "--provider", choices=["auto", "cuda", "cpu"], default="auto", help="for ONNX files and checkpoints"
    )
    written = found.add_argument_group("how a checkpoint is written")
    written.add_argument(
        "--dialect", metavar="NAME",
        help="nemotron-nas, per_layer_config or anymodel (default: the source's own, else per_layer_config)",
    )  # fmt: skip
    written.add_argument(
        "--shard-size", type=data.memory, metavar="SIZE",
        help="most bytes of a file that holds several tensors (default: 5GB)",
    )  # fmt: skip
    written.add_argument(
        "--restart", action="store_true", help="begin anew instead of going on with what a killed run left"
    )
    found.add_argument("--report", type=Path, metavar="FILE.json", help="write what was measured and removed")
    found.add_argument("--force", action="store_true", help="overwrite the output")


def run(options: argparse.Namespace, _told: Callable[[BaseException], str]) -> int:
    """Choose, remove and show. Returns the exit code."""
    _check(options)
    if options.report is not None:
        check_report_place(
            options.report, [Path(options.model), *([options.output] if options.output else [])]
        )
    from fxfuse.screen import show_drawing, show_steps

    try:
        with show_steps() as progress:
            removal = _remove(options, progress)
    except KeyboardInterrupt as error:
        goes_on = _is_folder(options)
        error.args = ("the same command goes on where it was" if goes_on else "nothing was written",)
        raise
    if options.report is not None:
        write_text(options.report, removal.to_json())
    from fxfuse.removal.table import draw

    show_drawing(draw(removal))
    return DONE if removal.output is not None else NOTHING


def _check(options: argparse.Namespace) -> None:
    if _measures(options) and options.data is None:
        raise InputError("--number and --max-kl are measured: give calibration data with --data.")
    if not _is_onnx(options) and options.renumber:
        raise InputError("--renumber is for the cache of ONNX files: others have no gaps in theirs.")
    if _is_folder(options):
        return
    if not _is_onnx(options) and options.output is None:
        raise InputError("Say with -o where the program goes: a .pt2 file.")
    if options.dialect is not None or options.shard_size is not None or options.restart:
        raise InputError(
            "--dialect, --shard-size and --restart are for the folders of checkpoints: leave them out."
        )


def _measures(options: argparse.Namespace) -> bool:
    return options.number is not None or options.max_kl is not None


def _is_onnx(options: argparse.Namespace) -> bool:
    return Path(options.model).suffix == ".onnx"


def _is_folder(options: argparse.Namespace) -> bool:
    return Path(options.model).is_dir()


def _remove(options: argparse.Namespace, progress: Progress) -> Removal:
    progress("starting")
    if _is_folder(options):
        return _remove_from_folder(options, progress)
    from fxfuse.removal.onnx_api import remove_attention_onnx  # takes seconds, with something on the screen
    from fxfuse.removal.programs import program_of, remove_attention_program
    from fxfuse.removal.records import Choice

    model: Any = options.model
    if not _is_onnx(options):
        progress("exporting the model")
        model = program_of(options.model)
    which = _which(options, model, progress)
    if isinstance(which, Choice) and not which.steps:
        return _none(options, which)
    if _is_onnx(options):
        return remove_attention_onnx(
            model, options.output, which, renumber=options.renumber, provider=options.provider,
            force=options.force, progress=progress,
        )  # fmt: skip
    return remove_attention_program(
        model, options.output, which, name=options.model, force=options.force, progress=progress
    )


def _remove_from_folder(options: argparse.Namespace, progress: Progress) -> Removal:
    from fxfuse.checkpoints.remove import check_removed_output, remove_attention_checkpoint
    from fxfuse.removal.records import Choice

    kept = {"resume": not options.restart, "force": options.force}
    check_removed_output(options.model, options.output, **kept)
    which = _which(options, options.model, progress)
    if isinstance(which, Choice) and not which.steps:
        return _none(options, which)
    size = {} if options.shard_size is None else {"shard_size": options.shard_size}
    return remove_attention_checkpoint(
        options.model, options.output, which, dialect=options.dialect, progress=progress, **size, **kept
    )


def _none(options: argparse.Namespace, choice: Choice) -> Removal:
    """What is told where nothing may go."""
    from fxfuse.removal.records import Removal

    return Removal(options.model, choice=choice, notes=[f"none is within budget: {choice.stopped}"])


def _which(options: argparse.Namespace, model: Any, progress: Progress) -> Choice | list[int]:
    from fxfuse.removal.choosing import choose_attention
    from fxfuse.removal.decisions import read_decisions
    from fxfuse.removal.which import parse_layers

    if options.layers is not None:
        return parse_layers(options.layers)
    if options.decisions is not None:
        return list(read_decisions(options.decisions))
    return choose_attention(
        model, options.data, number=options.number, max_kl=options.max_kl,
        among=parse_layers(options.among) if options.among else None, first=options.first,
        patience=options.patience, memory=options.memory, provider=options.provider, progress=progress,
        **data.wishes(options),
    )  # fmt: skip
