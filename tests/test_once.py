"""A written model that is run once gives the branches of its groups, where the streams are the original's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fxfuse
from fxfuse.frontends import arena, onnx_runs, pieces
from fxfuse.frontends.once import Once
from fxfuse.frontends.onnx_runs import Runs
from tests.small_onnx import save


@pytest.fixture(autouse=True)
def small_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "BOUND", 4000)
    monkeypatch.setattr(onnx_runs, "BOUND", 4000)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Which groups were found in the run of the written model, and which parts were run besides."""
    found: dict[str, list[Any]] = {"once": [], "parts": []}
    branch, part = Once.branch, Runs.part

    def watched(self: Once, group: int, x: torch.Tensor, sample: int) -> torch.Tensor | None:
        value = branch(self, group, x, sample)
        found["once"].append((group, value is not None))
        return value

    def ran(self: Runs, index: Any, folder: Path, block: Any, wanted: str) -> Any:
        found["parts"].append(wanted)
        return part(self, index, folder, block, wanted)

    monkeypatch.setattr(Once, "branch", watched)
    monkeypatch.setattr(Runs, "part", ran)
    return found


def test_the_first_group_is_not_run_again(tmp_path, seen):
    path = save(tmp_path / "m.onnx", external=True, layers=4)
    report = fxfuse.fuse_onnx(path, tmp_path / "o.onnx", min_sqnr=None, provider="cpu", max_group=2)
    assert [len(group.blocks) for group in report.groups] == [2, 2]
    assert seen["once"] == [(0, True), (1, False)]  # the second reads what the first one left
    assert [name for name in seen["parts"] if name.startswith("fxfuse.0")] == []
    assert [name for name in seen["parts"] if name.startswith("fxfuse.1")] != []


def test_another_stream_is_run_by_itself(tmp_path, monkeypatch, seen):
    monkeypatch.setattr(torch, "equal", lambda *_: False)
    path = save(tmp_path / "m.onnx", external=True)
    fxfuse.fuse_onnx(path, tmp_path / "o.onnx", min_sqnr=None, provider="cpu")
    assert seen["once"] == [(0, False)]
    assert [name for name in seen["parts"] if name.startswith("fxfuse.0")] != []


def test_the_pool_of_memory_changes_no_figure(tmp_path, monkeypatch):
    path = save(tmp_path / "m.onnx", external=True)
    reports = []
    for shared in (False, True):
        if shared:
            arena.share_memory()
        monkeypatch.setitem(arena._state, "shared", shared)
        assert ("session.use_env_allocators" in arena.memory_options(True)) is shared
        assert "session.use_env_allocators" not in arena.memory_options(False)
        out = tmp_path / f"{shared}.onnx"
        reports.append(fxfuse.fuse_onnx(path, out, min_sqnr=None, provider="cpu"))
    assert reports[0].groups == reports[1].groups
    assert reports[0].end_to_end == reports[1].end_to_end
