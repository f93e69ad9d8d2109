"""The benchmark of checkpoints: what it makes can be fused, and its figures stand on the page."""

import json
from pathlib import Path

import torch

import fxfuse
from fxfuse.checkpoints.tensors import Tensors
from tools.bench_checkpoint import draw
from tools.benchmark.checkpoint import CheckpointResult
from tools.benchmark.random_checkpoint import Stack, write_checkpoint
from tools.benchmark.side_pages import side_pages

STACK = Stack(4, 2, 256, 128, vocab_size=50)
RESULT = CheckpointResult(
    "8 GB", 8_000_000_000, 2_000_000_000, 300_000_000, [10.0, 12.0], [14.0, 15.0, 19.0], 10, True,
    {"clean": True},
)  # fmt: skip


def test_random_checkpoint_is_fused_as_it_says(tmp_path: Path) -> None:
    weights = write_checkpoint(STACK, tmp_path / "in", 400_000)
    found = Tensors(tmp_path / "in")
    assert (len(found.files) > 1, found.nbytes) == (True, weights)
    report = fxfuse.fuse_checkpoint(tmp_path / "in", auto=True, dry_run=True)
    assert report.groups == [(0, 1, 2)]
    assert STACK.largest_group == 3 * 3 * 256 * 128 * 2


def test_gains_are_one_or_each_its_own(tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.post_attention_layernorm.weight" for layer in (1, 2)]
    for same in (False, True):
        write_checkpoint(Stack(4, 2, 256, 128, 50, same_gains=same), tmp_path / str(same), 10**9)
        one, other = map(Tensors(tmp_path / str(same)).read, names)
        assert torch.equal(one, other) == same
        assert 0.8 < one.float().mean() < 1.2


def test_bounds() -> None:
    assert (RESULT.allowed, round(RESULT.ratio, 2), RESULT.holds) == (2_500_000_000, 1.36, True)
    assert draw([RESULT]).row_count == 1
    worse = CheckpointResult("x", 1, 1, 600_000_000, [1.0], [1.0], 1, True, {"clean": True})
    assert not worse.holds


def test_figures_stand_on_the_page() -> None:
    record = {
        "kind": "checkpoint", "machine": {"gpu": None, "cpu": "X", "cores": 2}, "versions": {"torch": "2"},
        "results": [json.loads(json.dumps(RESULT.to_dict()))],
    }  # fmt: skip
    (part,) = side_pages([record])
    assert "| 8 GB | 8.00 GB | 2.00 GB | 0.30 GB | 11.0 s | 15.0 s | 1.36 | 10 | yes | clean |" in part
