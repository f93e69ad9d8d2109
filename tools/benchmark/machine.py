"""The machine that was measured: what a reader needs to judge the figures, and no host names or paths."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass
from typing import Any

from fxfuse.timing.machine import available_cores, cpu_name

__all__ = ["Machine", "available_cores", "slug"]


@dataclass(frozen=True)
class Machine:
    """Names and sizes; `load` is the average over the minute before the measurement, None if unknown."""

    cpu: str
    cores: int
    memory_gib: float | None
    gpu: str | None
    system: str
    load: float | None

    @classmethod
    def here(cls, device: str) -> Machine:
        """This machine; its GPU only where the benchmark runs on it."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        system = f"{platform.system()} {platform.machine()}"
        return cls(cpu_name(), available_cores(), _memory(), _gpu(device), system, load)

    @property
    def device_name(self) -> str:
        """What the figures are of: the GPU where there is one, else the processor."""
        return self.gpu or f"{self.cpu} {self.cores} cores"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


def slug(name: str) -> str:
    """A device's name as a file name: "AMD EPYC(TM) 9654" -> "amd-epyc-9654"."""
    plain = re.sub(r"\((?:r|tm|c)\)", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"


def _memory() -> float | None:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    return round(size / 2**30, 1)


def _gpu(device: str) -> str | None:
    if device != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name()
