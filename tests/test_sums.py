"""Sums of branches: the same however they are asked for, and no branch is run twice while there is room."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fxfuse import sums as module
from fxfuse.sums import Sums


@dataclass
class Named:
    name: str


def blocks(count: int) -> Any:
    return [Named(f"layers.{index}") for index in range(count)]


def branches(ran: list[str]) -> Any:
    def branch(block: Named, x: torch.Tensor, sample: int) -> torch.Tensor:
        ran.append(block.name)
        return x * (int(block.name[-1]) + 1) + sample

    return branch


def test_groups_that_begin_alike_run_each_branch_once() -> None:
    ran: list[str] = []
    sums = Sums(branches(ran))
    x = torch.ones(2, 3)
    for size in (4, 2, 3, 4, 1):
        expected = x.double() * sum(range(1, size + 1)) + size
        assert torch.equal(sums.of(blocks(4)[:size], x, 1), expected)
    assert ran == ["layers.0", "layers.1", "layers.2", "layers.3"]


def test_samples_and_later_starts_have_sums_of_their_own() -> None:
    sums = Sums(branches([]))
    x = torch.ones(3)
    assert torch.equal(sums.of(blocks(3), x, 0), 6 * x.double())
    assert torch.equal(sums.of(blocks(3), x, 2), 12 * x.double())
    assert torch.equal(sums.of(blocks(3)[1:], 2 * x, 0), 10 * x.double())


def test_nothing_is_kept_beyond_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROOM", 3 * 8)
    sums = Sums(branches(ran := []))
    for _ in range(2):
        assert torch.equal(sums.of(blocks(2), torch.ones(3), 0), 3 * torch.ones(3).double())
    assert ran == ["layers.0", "layers.1", "layers.1"]
