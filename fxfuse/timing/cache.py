"""What was timed before on this machine, in one JSON file: $FXFUSE_CACHE or the user's cache folder.

A key says all that a time depends on: device, threads, versions, runtime, shape and tokens. A file that is
damaged counts as empty. With FXFUSE_CACHE set to nothing, nothing is remembered.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Cache", "cache_path"]

Figures: TypeAlias = "dict[str, Any]"

_FORMAT = 2


def cache_path() -> Path | None:
    """Where the file is; None where nothing is to be remembered."""
    given = os.environ.get("FXFUSE_CACHE")
    if given is not None:
        return Path(given) / "timings.json" if given.strip() else None
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fxfuse" / "timings.json"


class Cache:
    """Figures by key; a new one is written at once, whole or not at all."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def get(self, key: str) -> Figures | None:
        """What is known under `key`."""
        found = self._read().get(key)
        return found if isinstance(found, dict) else None

    def put(self, key: str, figures: Mapping[str, Any]) -> None:
        """Remember; where the file cannot be written, nothing is."""
        if self.path is None:
            return
        known = self._read()  # again, since another process may have written
        known[key] = dict(figures)
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".timings", dir=self.path.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump({"format": _FORMAT, "timings": known}, file, indent=1, allow_nan=False)
                os.replace(name, self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise

    def _read(self) -> dict[str, Any]:
        if self.path is None:
            return {}
        try:
            data = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            return {}
        found = data.get("timings")
        return found if isinstance(found, dict) else {}
