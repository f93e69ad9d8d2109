"""Ranks of torch.distributed in processes of their own: started, given one job, ended."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from fxfuse.timing.workers import Failure

__all__ = ["on_ranks"]

_PATIENCE = 600.0

Job = Callable[..., Any]


def on_ranks(ranks: int, device: str, job: Job, *arguments: Any) -> Any:
    """What `job(*arguments)` gives on rank 0, where all ranks do it; each computes with one thread on a CPU.

    Raises:
        Failure: A rank failed, or they took too long.
    """
    context = multiprocessing.get_context("spawn")
    answer, told = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_be, args=(rank, ranks, device, folder, told, job, arguments), daemon=True)
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        told.close()
        try:
            return _heard(answer)
        finally:
            for process in processes:
                process.join(10)
                process.kill()


def _heard(answer: Any) -> Any:
    if not answer.poll(_PATIENCE):
        raise Failure(f"the ranks took more than {_PATIENCE:g} s")
    try:
        good, found = answer.recv()
    except EOFError:
        raise Failure("a rank ended before it answered") from None
    if not good:
        raise Failure(found)
    return found


def _be(
    rank: int, ranks: int, device: str, folder: str, told: Any, job: Job, arguments: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    if device == "cpu":
        torch.set_num_threads(1)
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    else:
        torch.cuda.set_device(rank)
    try:
        dist.init_process_group(
            "gloo" if device == "cpu" else "nccl",
            init_method=f"file://{folder}/meeting",
            rank=rank,
            world_size=ranks,
            timeout=datetime.timedelta(seconds=120),
        )
        found = job(*arguments)
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:
        told.send((False, f"rank {rank}: {type(error).__name__}: {error}"))
        raise
    if rank == 0:
        told.send((True, found))
