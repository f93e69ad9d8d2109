"""The source text of the running Python's standard library, as bytes, split into training and held-out files.

A file's side is decided by a hash of its path alone, so a file held out under one Python version is held out
under every other. Test suites, generated tables and what many installations leave out are not part of it.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["held_out", "is_held_out", "list_files", "training"]

HELD_OUT_PERCENT = 7
EXCLUDED = ("site-packages", "dist-packages", "lib-dynload", "__pycache__")
TESTS = ("test", "tests", "idle_test")
NOT_EVERYWHERE = ("idlelib", "lib2to3", "turtledemo", "ensurepip", "distutils", "tkinter")
GENERATED = ("encodings", "pydoc_data")


def list_files(root: Path | None = None) -> list[str]:
    """Return the corpus's files as sorted POSIX paths relative to `root`, by default the standard library."""
    root = root or Path(sysconfig.get_path("stdlib"))
    left_out = {*EXCLUDED, *TESTS, *NOT_EVERYWHERE, *GENERATED}
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        # Pruned in place, so that os.walk does not go down into what is installed beside the library.
        folders[:] = [name for name in folders if name not in left_out and not name.startswith("config-")]
        kept = (name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata"))
        found += ((Path(folder) / name).relative_to(root).as_posix() for name in kept)
    return sorted(found)


def is_held_out(path: str) -> bool:
    """Say whether the file at this relative POSIX path is kept from training."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % 100 < HELD_OUT_PERCENT


def _read(held: bool, root: Path | None) -> NDArray[np.uint8]:
    """Return one side's files, in order of their paths, each ended by a zero byte."""
    base = root or Path(sysconfig.get_path("stdlib"))
    chosen = (base / path for path in list_files(root) if is_held_out(path) == held)
    texts = (path.read_bytes().replace(b"\r\n", b"\n") + b"\0" for path in chosen)
    return np.frombuffer(b"".join(texts), dtype=np.uint8)


def training(root: Path | None = None) -> NDArray[np.uint8]:
    """Return the bytes to train on."""
    return _read(False, root)


def held_out(max_bytes: int | None = None, root: Path | None = None) -> NDArray[np.uint8]:
    """Return the bytes never trained on, or `max_bytes` of them in 4 KiB stretches spread over all files."""
    data = _read(True, root)
    if max_bytes is None or max_bytes >= len(data):
        return data
    stretches = [data[start : start + 4096] for start in range(0, len(data) - 4095, 4096)]
    count = -(-max_bytes // 4096)
    picked = np.linspace(0, len(stretches) - 1, count).round().astype(int)
    return np.concatenate([stretches[i] for i in picked])[:max_bytes]
