"""One file of numbers that all contestants read their weights from: what they are makes no difference.

They are small and normal, so that nothing overflows and no product meets denormal numbers.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

__all__ = ["WeightFile", "numpy_type"]

_CHUNK = 1 << 22  # numbers that are drawn; the file repeats them
_DEVIATION = 0.02


def numpy_type(name: str) -> np.dtype[np.generic]:
    """The array type of an element type that is spelled as in torch."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


class WeightFile:
    """Numbers of one type, as many as were asked for so far."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.path = folder / f"{dtype}.bin"
        self.path.touch()
        self._dtype = numpy_type(dtype)
        self._chunk: bytes | None = None

    def grow(self, size: int) -> None:
        """Make it hold `size` bytes at least."""
        with self.path.open("ab") as file:
            while file.tell() < size:
                if self._chunk is None:
                    drawn = np.random.default_rng(0).standard_normal(_CHUNK, np.float32) * _DEVIATION
                    self._chunk = drawn.astype(self._dtype).tobytes()
                file.write(self._chunk[: _rounded(size - file.tell())])


def _rounded(size: int) -> int:
    return -(-size // 4096) * 4096
