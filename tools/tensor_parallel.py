"""Generate with several processes that hold a fused checkpoint together: one share each.

    torchrun --nproc-per-node 2 tools/tensor_parallel.py DIR --prompt "Once upon a time"

nccl where there are GPUs, else gloo. Only rank 0 prints. What cannot be done is told by the first rank that
finds it; torchrun adds its own table of the ranks that ended.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # for fxfuse where it is not installed

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.distributed.tensor.debug import CommDebugMode  # noqa: E402

import fxfuse  # noqa: E402
from fxfuse.checkpoints.opening import open_checkpoint  # noqa: E402
from fxfuse.checkpoints.settings import setting  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Load, share out, generate; returns 0, or 1 or 2 where it cannot be done."""
    options = parser().parse_args(arguments)
    if "RANK" not in os.environ:
        print("Start it as: torchrun --nproc-per-node 2 tools/tensor_parallel.py DIR", file=sys.stderr)
        return 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        for line in run(options, device):
            if dist.get_rank() == 0:
                print(line)
    except fxfuse.FxfuseError as error:
        tell(error, dist.group.WORLD.get_group_store())
        return error.exit_code
    finally:
        dist.destroy_process_group()
    return 0


def tell(error: Exception, store: dist.Store) -> None:
    """Print a sentence once, however many ranks that share `store` come upon it."""
    if store.add("told", 1) == 1:
        print(str(error).replace("pass pad=True", "give --pad"), file=sys.stderr)


def run(options: argparse.Namespace, device: str) -> list[str]:
    """The new tokens, their rate, and the collectives of one step.

    Raises:
        InputError: There is no tokenizer, the prompt is empty or outside the vocabulary, or what
            `load_parallel` tells of.
    """
    ids = _prompt(options).to(device)
    model = fxfuse.load_parallel(options.folder, pad=options.pad)
    with warnings.catch_warnings(), torch.no_grad(), CommDebugMode() as counted:
        warnings.filterwarnings("ignore", "For backward hooks")  # of the counting, of which no backward comes
        model(ids[:, -1:])
    begin = time.perf_counter()
    found = model.generate(ids, max_new_tokens=options.tokens, do_sample=False)
    seconds = time.perf_counter() - begin
    new = found[0, ids.shape[1] :]
    counts = {str(name).rpartition(".")[2]: n for name, n in counted.get_comm_counts().items() if n}
    collectives = ", ".join(f"{n} {name}" for name, n in counts.items()) or "none"
    return [
        _text(options, new),
        f"{len(new)} tokens on {dist.get_world_size()} ranks, {len(new) / seconds:.1f} a second",
        f"collectives of a step: {collectives}",
    ]


def _prompt(options: argparse.Namespace) -> torch.Tensor:
    """Token ids [1, S], held against the vocabulary before weights are read."""
    words = int(setting(open_checkpoint(options.folder).config, "vocab_size"))
    ids = options.ids or list(_tokenizer(options)(options.prompt)["input_ids"])
    if not ids:
        raise fxfuse.InputError("The prompt has no tokens: give a longer one with --prompt.")
    if not 0 <= min(ids) <= max(ids) < words:
        wrong = next(each for each in ids if not 0 <= each < words)
        raise fxfuse.InputError(
            f"There is no token {wrong} in a vocabulary of {words}: give --ids between 0 and {words - 1}."
        )
    return torch.tensor([ids])


def _text(options: argparse.Namespace, ids: torch.Tensor) -> str:
    return " ".join(map(str, ids.tolist())) if options.ids else str(_tokenizer(options).decode(ids))


def _tokenizer(options: argparse.Namespace) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(options.folder, local_files_only=True)
    except Exception as error:  # a tokenizer may need any package
        raise fxfuse.InputError(
            f"No tokenizer can be loaded from {options.folder}: give token ids with --ids."
        ) from error


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    found = argparse.ArgumentParser(description="Generate from a checkpoint under tensor parallel.")
    found.add_argument("folder", type=Path, metavar="DIR", help="checkpoint that load_pretrained reads")
    found.add_argument("--prompt", default="The", help="text to go on from (default: The)")
    found.add_argument("--ids", type=int, nargs="+", metavar="ID", help="token ids instead of a text")
    found.add_argument("--tokens", type=int, default=32, help="new tokens (default: 32)")
    found.add_argument("--pad", action="store_true", help="fill widths that do not divide with zeros")
    return found


if __name__ == "__main__":
    sys.exit(main())
