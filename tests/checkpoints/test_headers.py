"""Files that are no safetensors files, and an index that is none: each told once, in a sentence."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from fxfuse.checkpoints.tensors import Tensors
from fxfuse.errors import InputError


def told(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        Tensors(folder)
    return str(caught.value)


def written(folder: Path, header: Any, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("data", [b"", b"1234", struct.pack("<Q", 100) + b"{}"])
def test_a_header_that_is_cut_short(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    assert told(tmp_path) == f"{path} is cut short or no safetensors file: copy it anew."


def test_a_type_that_is_not_known(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}, b"1234")
    assert told(tmp_path) == f"a in {path} has the type F3, which is not known: use another checkpoint."


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"dtype": "F32", "shape": [1]}, "'data_offsets'"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "a has 4 bytes for shape [2] in F32"),
    ],
)
def test_a_header_that_says_something_else(tmp_path: Path, entry: dict[str, Any], why: str) -> None:
    path = written(tmp_path, {"a": entry}, b"1234")
    assert told(tmp_path) == f"The header of {path} is not that of a safetensors file ({why}): copy it anew."


@pytest.mark.parametrize("found", [3, [], {"weight_map": 3}, {"weight_map": {"a": 3}}])
def test_an_index_without_names(tmp_path: Path, found: Any) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(found))
    assert told(tmp_path) == f"{path} is no index with a weight_map: copy the checkpoint anew."


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = written(tmp_path, {})
    assert told(path) == f"{path} is no folder: give the folder of a Hugging Face checkpoint."
    assert re.match("There is no folder ", told(tmp_path / "none"))
