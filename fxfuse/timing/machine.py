"""The machine that is timed on: what a cached time belongs to, and how much memory is left on it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

__all__ = ["available_cores", "available_memory", "cpu_name", "device_name"]


def device_name(device: str) -> str:
    """The GPU's name, or the processor's with its cores."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {available_cores()} cores"


def cpu_name() -> str:
    """The processor as its maker calls it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(\S.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory(device: str) -> int | None:
    """Bytes that could still be used on the device; None where nothing says."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found.group(1)) if found else None
