"""Calibration files: arrays from .npy, .npz and .safetensors, documents from text and JSON lines."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fxfuse.calibration.arrays import from_array, from_arrays
from fxfuse.calibration.documents import read_json_lines, read_text
from fxfuse.calibration.found import Found, Wishes
from fxfuse.calibration.text import from_documents
from fxfuse.errors import InputError
from fxfuse.inputs import read_arrays
from fxfuse.progress import Progress

__all__ = ["read_file"]


def read_file(given: str | os.PathLike[str], wishes: Wishes, progress: Progress) -> Found:
    """Read a file by its name's ending.

    Raises:
        InputError: It is not there, is damaged or of no known type, or needs a tokenizer that is not given.
    """
    path = Path(given)
    if path.is_dir():
        raise InputError(f"The calibration data {path} is a folder: give a file in it.")
    if not path.is_file():
        raise InputError(f"There is no calibration file {path}: check the path.")
    if path.stat().st_size == 0:
        raise InputError(f"The calibration file {path} is empty: give at least two windows of token ids.")
    progress(f"reading {path.name}")
    reader = _ARRAYS.get(path.suffix.lower())
    if reader is not None:
        return reader(path, wishes)
    documents = read_json_lines if path.suffix.lower() in (".jsonl", ".json", ".ndjson") else read_text
    return from_documents(str(path), documents(path, wishes.tokenizer), wishes, progress)


def _npy(path: Path, wishes: Wishes) -> Found:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is no .npy file of numbers: write it with numpy.save.") from error
    if not isinstance(array, np.ndarray):  # np.load opens archives as well
        array.close()
        raise InputError(f"{path} is an .npz archive: name it so.")
    return from_array(str(path), array, wishes, str(path))


def _npz(path: Path, wishes: Wishes) -> Found:
    return from_arrays(str(path), read_arrays(path), wishes, str(path))


def _safetensors(path: Path, wishes: Wishes) -> Found:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(
            f"{path} needs the package safetensors: install it with pip install safetensors."
        ) from error
    try:
        arrays: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} is no .safetensors file: write it with safetensors.torch.save_file."
        ) from error
    return from_arrays(str(path), arrays, wishes, str(path))


_ARRAYS: dict[str, Callable[[Path, Wishes], Found]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
}
