"""`fxfuse analyze`: measure what each group would lose, and how little each attention matters."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fxfuse.cli import data
from fxfuse.cli.codes import DONE
from fxfuse.report_file import check_report_place, write_text

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "measure what each group would lose, and how little each attention matters"
DESCRIPTION = (
    "Measure a model on calibration data before anything is changed: for every run of consecutive FFN blocks "
    "the loss at the logits with it fused, the dependency of the blocks on each other, and for every "
    "attention the loss without it. fxfuse plan chooses groups by what this writes."
)
EPILOG = "exit codes: 0 measured; 1 internal error; 2 bad arguments or input"


def add_arguments(found: argparse.ArgumentParser) -> None:
    """The model, the data, what is measured, and where the JSON goes."""
    found.add_argument(
        "model",
        metavar="MODEL",
        help="an ONNX file, a .pt2 file of torch.export, the folder of a Hugging Face checkpoint, which is "
        "read block by block and need not fit into memory, or module:function for a Python function without "
        "arguments that returns a torch model and a tuple of its example inputs",
    )
    data.add_arguments(found, required=True)
    found.add_argument(
        "-o", "--output", type=Path, metavar="FILE.json", help="write the analysis as JSON, for fxfuse plan"
    )
    found.add_argument(
        "--segments",
        choices=["auto", "all", "pairs", "none"],
        default="auto",
        help="groups whose loss is measured; that of the others is predicted. pairs: those of two blocks and "
        "each whole chain; auto: all of chains of up to 12 blocks, pairs of longer ones (default: auto)",
    )
    found.add_argument("--no-dependency", action="store_true", help="leave the dependency matrix out")
    found.add_argument(
        "--no-attention", action="store_true", help="leave out the loss without each attention"
    )
    found.add_argument(
        "--kl-tokens", type=int, metavar="N", default=16384,
        help="tokens that each such loss is measured on (default: %(default)s; 0 for all)",
    )  # fmt: skip
    found.add_argument(
        "--provider", choices=["auto", "cuda", "cpu"], default="auto", help="for ONNX files and checkpoints"
    )


def run(options: argparse.Namespace, _told: Callable[[BaseException], str]) -> int:
    """Measure, write and show. Returns the exit code."""
    path: Path | None = options.output
    if path is not None:
        check_report_place(path, [Path(options.model), options.data], what="analysis")
    from fxfuse.screen import show_drawing, show_steps

    with show_steps() as progress:
        from fxfuse.analysis.api import analyze  # takes seconds, with something on the screen

        found = analyze(
            options.model,
            options.data,
            segments=options.segments,
            dependency=not options.no_dependency,
            attention=not options.no_attention,
            kl_tokens=options.kl_tokens or None,
            memory=options.memory,
            provider=options.provider,
            progress=progress,
            **data.wishes(options),
        )
    found.command = options.typed
    if path is not None:
        write_text(path, found.to_json(), what="analysis")
    from fxfuse.analysis.table import draw

    show_drawing(draw(found))
    return DONE
