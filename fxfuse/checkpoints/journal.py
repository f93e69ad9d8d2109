"""How far a run is, in a file that a kill at any moment leaves readable.

    {"fxfuse": "0.9", "source": {...}, "arguments": {...}}     whose leftovers these are
    ["model-00001-of-00007.safetensors", 268435456]            on the disk up to here
    ["model-00001-of-00007.safetensors", 5000123456]
    ["", 1]                                                    everything is there

A line is added only after the bytes that it speaks of are on the disk. A last line that was cut short says
nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxfuse.errors import InputError

__all__ = ["Journal"]

_END = ""
_WORDS = {"source": "the source's files", "arguments": "the arguments", "fxfuse": "the version of fxfuse"}


class Journal:
    """The journal at `path`, held by one process at a time; the run that `key` tells of begins or goes on.

    resumed: whether it goes on.

    Raises:
        InputError: Another process holds it, or another run wrote it and `restart` was not asked for.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], *, restart: bool = False) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _lock(self._file, path)
            held, self._positions = _read(path)
            if held is not None and held != key and not restart:
                raise InputError(_foreign(path, held, key))
            self.resumed = held == key and not restart
            if not self.resumed:
                self._begin(key)
            else:
                os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        except BaseException:
            os.close(self._file)
            raise

    @property
    def ended(self) -> bool:
        """Whether everything was in place, and only the folder's name may be missing."""
        return _END in self._positions

    def position(self, file: str) -> int:
        """Up to where a file is on the disk for certain."""
        return self._positions.get(file, 0)

    def note(self, file: str, position: int) -> None:
        """Write down that a file is on the disk up to `position`."""
        self._positions[file] = position
        self._add([file, position])

    def end(self) -> None:
        """Write down that everything is in place."""
        self.note(_END, 1)

    def close(self) -> None:
        """Let others have it."""
        os.close(self._file)

    def _begin(self, key: Mapping[str, Any]) -> None:
        self._positions = {}
        os.ftruncate(self._file, 0)
        self._add(key)

    def _add(self, line: object) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)


def _read(path: Path) -> tuple[Mapping[str, Any] | None, dict[str, int]]:
    """The key and the positions; None and nothing where no key was written whole."""
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        read = [json.loads(line) for line in lines]
        if not read or not isinstance(read[0], dict):
            return None, {}
        return read[0], {str(file): int(position) for file, position in read[1:]}
    except (ValueError, TypeError):
        return None, {}


def _foreign(path: Path, held: Mapping[str, Any], key: Mapping[str, Any]) -> str:
    differing = [words for name, words in _WORDS.items() if held.get(name) != key.get(name)]
    return (
        f"{path} is what another run left, and {' and '.join(differing) or 'what it writes'} differ: "
        "finish that one, or give resume=False to throw it away."
    )


def _lock(file: int, path: Path) -> None:
    """Keep other processes out until the file is closed; where there are no locks, the user is trusted."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"Another run is at it ({path} is locked): wait for its end.") from None
    except OSError:
        return
