"""Several gloo ranks in forked processes, which share the time that imports take."""

import datetime
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

Cases = dict[str, Callable[[], Any]]


def run(cases: Cases, ranks: int, folder: Path) -> None:
    """Run `cases` on every rank, and write what rank 0 got of each to `folder`/RANKS.json.

    A case that fails leaves the others waiting, so each rank stops at the first one.
    """
    children = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _be(cases, rank, ranks, folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}")


def _be(cases: Cases, rank: int, ranks: int, folder: Path) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host name may lead nowhere
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting-{ranks}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),
    )
    found = {name: case() for name, case in cases.items()}
    if rank == 0:
        (folder / f"{ranks}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
