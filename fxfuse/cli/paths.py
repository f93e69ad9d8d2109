"""Files and folders as arguments: an empty name, as an unset variable of a script gives, is none."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["named_path"]


def named_path(text: str) -> Path:
    """A path that is named; pathlib takes an empty one for the current folder.

    Raises:
        argparse.ArgumentTypeError: The name is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("the name is empty: name a file or folder")
    return Path(text)
