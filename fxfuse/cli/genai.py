"""`fxfuse genai`: a checkpoint, fused or not, as a folder for ONNX Runtime GenAI."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fxfuse.cli.codes import DONE
from fxfuse.cli.paths import named_path

__all__ = ["DESCRIPTION", "EPILOG", "HELP", "add_arguments", "run"]

HELP = "export a checkpoint for ONNX Runtime GenAI"
DESCRIPTION = (
    "Write a folder that onnxruntime-genai loads and generates with: the model with a cache for each layer "
    "that has attention, genai_config.json and the tokenizer. Where it can be run here, its logits are held "
    "against the checkpoint's before it is put in place."
)
EPILOG = "exit codes: 0 written; 1 verification failed; 2 bad arguments or input"


def add_arguments(found: argparse.ArgumentParser) -> None:
    """The checkpoint, where it goes and what it is for."""
    found.add_argument(
        "checkpoint",
        type=named_path,
        metavar="FOLDER",
        help="a Hugging Face checkpoint, as fxfuse checkpoint writes",
    )
    found.add_argument(
        "-o", "--output", type=named_path, required=True, metavar="OUT", help="the folder to write"
    )
    found.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16", "int8", "int4"),
        help="default: fp32 for the CPU, fp16 or bf16 for CUDA",
    )
    found.add_argument(
        "--provider",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="what it is for (default: %(default)s, what works here)",
    )
    found.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="default: the checkpoint's folder")
    found.add_argument("--force", action="store_true", help="replace an export that OUT holds")


def run(options: argparse.Namespace, _told: Callable[[BaseException], str]) -> int:
    """Export and show. Returns the exit code."""
    from fxfuse.screen import show_steps, write_out

    try:
        with show_steps() as progress:
            from fxfuse.genai.api import export_genai  # takes seconds, with something on the screen

            report = export_genai(
                options.checkpoint,
                options.output,
                precision=options.precision,
                provider=options.provider,
                tokenizer=options.tokenizer,
                force=options.force,
                progress=progress,
            )
    except KeyboardInterrupt as error:
        error.args = ("nothing was written",)
        raise
    write_out(f"{report}\n")
    return DONE
