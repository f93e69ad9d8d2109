"""Which contestants fit in memory together: the most important first, what does not fit is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.benchmark.cases import Case, Settings
from tools.benchmark.entries import Entry
from tools.benchmark.subjects import Size

__all__ = ["available", "fitting"]

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_WEIGHTS = {"int8": 1.1, "int4": 0.7}
_PROCESS = {"cpu": 0.25, "cuda": 0.8}
"""GB that a process holds beside its weights."""

_SHARE = 0.9


def fitting(
    entries: Sequence[Entry], case: Case, size: Size, settings: Settings, room: float
) -> tuple[list[Entry], dict[Entry, str]]:
    """The contestants that fit into `room` GB, and why the others do not."""
    left = _SHARE * room
    kept: list[Entry] = []
    dropped: dict[Entry, str] = {}
    hosts: set[str] = set()
    for entry in entries:
        needed = _needed(entry, case, size, settings, entry.process not in hosts)
        if entry.host and entry.host not in hosts:
            dropped[entry] = f"not measured: {entry.host} does not fit in memory"
        elif needed > left:
            dropped[entry] = f"not measured: {needed:.1f} GB of memory more than there is"
        else:
            left -= needed
            hosts.add(entry.process)
            kept.append(entry)
    return kept, dropped


def _needed(entry: Entry, case: Case, size: Size, settings: Settings, alone: bool) -> float:
    each = _BYTES[case.dtype] if entry.weights == "float" else _WEIGHTS[entry.weights]
    own = 0.0 if entry.mode == "replay" else size.weights * each / 1e9
    if entry.runtime == "torch" and entry.is_fused and entry.mode != "replay":
        own += size.in_chains * each / 1e9
    return own * 1.05 + (_PROCESS[settings.device] if alone else 0.1)


def available(device: str) -> float:
    """GB of the device's memory that nothing holds; what is unknown counts as endless."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0]) / 1e9
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 / 1e9 if found else float("inf")
