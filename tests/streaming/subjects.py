"""Checkpoints that are measured from disk, and the same models loaded, to hold the figures against."""

import functools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

import fxfuse
from fxfuse.analysis.records import Analysis
from fxfuse.calibration import Calibration
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.records import Checkpoint
from fxfuse.checkpoints.tensors import Tensors
from fxfuse.frontends.torch_model import export_module
from fxfuse.loading.api import load_pretrained
from tests.loading.small import VOCAB, make

_FOLDERS = tempfile.TemporaryDirectory()


@functools.cache
def folder() -> Path:
    """A Llama of six layers: a run of three FFNs, one of two, and one alone; not to be written into."""
    path = Path(_FOLDERS.name) / "llama"
    make(path, "llama", widths={2: 40, 4: 32}, intermediate_size=48)
    return path


def checkpoint() -> Checkpoint:
    return open_checkpoint(folder())


@functools.cache
def program() -> ExportedProgram:
    """The loaded model's."""
    return export_module(load_pretrained(folder()), data().fit[0])


def ids(windows: int, length: int = 12, seed: int = 3) -> Tensor:
    return torch.randint(0, VOCAB, (windows, length), generator=torch.Generator().manual_seed(seed))


def arrays(windows: int = 20) -> dict[str, Tensor]:
    """Token ids, and a mask by which the last tokens of every third window are padding."""
    mask = torch.ones(windows, 12, dtype=torch.int64)
    mask[::3, 7:] = 0
    return {"input_ids": ids(windows), "attention_mask": mask}


def data(windows: int = 20) -> Calibration:
    return Calibration.of(arrays(windows), batch_size=4)


@functools.cache
def reference() -> Analysis:
    """The analysis of the loaded model."""
    return fxfuse.analyze(program(), data(), kl_tokens=None)


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Hold two analyses, as plain data, against each other: figures to rounding, all else exactly."""
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys(), where
        for name in expected.keys() - {"model", "seconds", "versions", "notes"}:
            assert_same(found[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for place, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{place}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6), where
    else:
        assert found == expected, where


class Reads:
    """Counts how often every tensor is read while the context lasts, and how many bytes of the embedding."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        own = Tensors.read

        def read(tensors: Tensors, name: str, start: int = 0, stop: int | None = None) -> Tensor:
            found = own(tensors, name, start, stop)
            self.counts[name] = self.counts.get(name, 0) + 1
            self.rows[name] = self.rows.get(name, 0) + len(found)
            return found

        monkeypatch.setattr(Tensors, "read", read)

    def of_layers(self) -> Iterator[int]:
        return (count for name, count in self.counts.items() if ".layers." in name)
