"""The arguments that say what to calibrate on, shared by all commands that do."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfuse.errors import InputError
from fxfuse.timing.target import parse_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fxfuse.calibration import Calibration
    from fxfuse.specs import InputSpec

__all__ = ["add_arguments", "add_target", "memory", "read", "target", "wishes"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?"


def add_arguments(found: argparse.ArgumentParser, *, seed: bool = True, required: bool = False) -> None:
    """Calibration data and how they are read; without --seed where the command has one of its own."""
    group = found.add_argument_group("calibration: what is measured and fitted on")
    group.add_argument(
        "--data", type=Path, metavar="FILE", required=required,
        help="token ids in .npy, .npz or .safetensors; or text or .jsonl, with --tokenizer",
    )  # fmt: skip
    group.add_argument(
        "--tokenizer", metavar="NAME", help='for text: a folder or name of transformers, or "bytes"'
    )
    group.add_argument("--context", type=_count, metavar="N", help="tokens in a window (default: 256)")
    group.add_argument(
        "--tokens", type=_count, metavar="N", default=65536,
        help="read at most so many, held-out ones included (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--batch-size", type=_count, metavar="N", help="windows in a batch (default: 8)")
    group.add_argument(
        "--held-out", type=float, metavar="SHARE", default=0.2,
        help="share of the windows that judges and is never fitted on (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--memory", type=memory, metavar="SIZE", default=2 << 30,
        help="activations held in memory, such as 500MB; more go to the disk (default: 2GiB)",
    )  # fmt: skip
    if seed:
        group.add_argument(
            "--seed", type=int, metavar="N", default=0, help="for the order of windows (default: %(default)s)"
        )


def add_target(found: argparse.ArgumentParser, purpose: str) -> None:
    """What the result has to be fast on; `purpose` says what is done with it."""
    group = found.add_argument_group("timing: what the result has to be fast on")
    group.add_argument(
        "--target-tokens", type=_token_counts, metavar="N,N",
        help=f"token counts of one call that matter, such as 1,8,32: {purpose}",
    )  # fmt: skip
    group.add_argument(
        "--target-threads", type=_count, metavar="N",
        help="threads to time with (default: the runtime's own choice)",
    )  # fmt: skip


def target(options: argparse.Namespace) -> dict[str, Any] | None:
    """The target that the arguments name, as every function takes it.

    Raises:
        InputError: There are threads without token counts.
    """
    if options.target_tokens is None:
        if options.target_threads is not None:
            raise InputError("--target-threads needs --target-tokens beside it: it is of their timing.")
        return None
    return {"tokens": options.target_tokens, "threads": options.target_threads}


def read(
    options: argparse.Namespace,
    *,
    specs: Sequence[InputSpec] = (),
    vocab_size: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Read what the arguments say; a size that `specs` fixes is the default of --context and --batch-size.

    With `specs`, the inputs of an ONNX model, every batch holds all of them.

    Raises:
        InputError: There is no --data, or it cannot be read or does not fit the model.
    """
    from fxfuse.calibration import Calibration  # waits for torch
    from fxfuse.calibration.complete import fixed_sizes

    if options.data is None:
        raise InputError("Calibration data are needed: give token ids or text with --data.")
    count, length = fixed_sizes(specs)
    found = Calibration.of(
        options.data,
        tokenizer=options.tokenizer,
        context=options.context or length or 256,
        max_tokens=options.tokens,
        batch_size=options.batch_size or count or 8,
        held_out=options.held_out,
        seed=options.seed,
        vocab_size=vocab_size,
        progress=progress,
    )
    return found.completed(specs) if specs else found


def wishes(options: argparse.Namespace) -> dict[str, Any]:
    """What `Calibration.of` takes besides the data, as far as the arguments say; for `calibration_for`."""
    given = {
        "tokenizer": options.tokenizer,
        "context": options.context,
        "max_tokens": options.tokens,
        "batch_size": options.batch_size,
        "held_out": options.held_out,
        "seed": options.seed,
    }
    return {name: value for name, value in given.items() if value is not None}


def memory(text: str) -> int:
    """Bytes of a size such as 500MB, 2GiB or 1.5g.

    Raises:
        argparse.ArgumentTypeError: It is no size.
    """
    match = re.fullmatch(_SIZE, text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write one such as 500MB or 2GiB")
    unit = 1024 ** "kmgt".find(match[2]) * 1024 if match[3] else _UNITS[match[2]]
    return int(float(match[1]) * unit)


def _token_counts(text: str) -> tuple[int, ...]:
    try:
        return parse_tokens(text)
    except (ValueError, InputError):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of token counts such as 1,8,32") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)
