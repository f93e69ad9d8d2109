"""Files that several workers of pytest-xdist need are made by the first that comes, and read by all."""

import os
import time
from collections.abc import Callable
from pathlib import Path

_PATIENCE = 120.0


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, which `make` writes unless another process did or is at it; made anew where that one died.

    `make` is given another path of the same name, so that the file appears whole.
    """
    claim = path.with_name(f".{path.name}.claim")
    while not path.exists():
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            if time.time() - claim.stat().st_mtime > _PATIENCE:
                claim.touch()
            else:
                time.sleep(0.05)
                continue
        own = path.parent / f".{os.getpid()}"
        own.mkdir(exist_ok=True)
        make(own / path.name)
        os.replace(own / path.name, path)
    return path
