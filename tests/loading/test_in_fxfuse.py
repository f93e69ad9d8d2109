"""A loaded model is an ordinary one: it is compiled, fused, exported and loses attention like others."""

from __future__ import annotations

from pathlib import Path

import torch

import fxfuse
from tests.exporters import silenced
from tests.loading import small
from tests.loading.test_caches import generate
from tests.loading.test_families import logits
from tests.loading.test_fused import parallel

ANY_LOSS = {"min_sqnr": None, "max_kl": None}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_torch_compile_fuses_its_chains(tmp_path: Path) -> None:
    """In one graph, in which the cache is made too: use_cache is transformers' default."""
    small.make(tmp_path, widths={1: 64})
    model, ids = fxfuse.load_pretrained(tmp_path).requires_grad_(False), small.ids()
    run = torch.compile(model, backend="fxfuse", fullgraph=True, options={**ANY_LOSS, "inner": "eager"})
    with torch.no_grad():
        out = run(input_ids=ids)
    close(out.logits, logits(parallel(model), ids))
    assert [len(group.blocks) for group in fxfuse.reports()[-1].groups] == [3, 2]
    assert len(out.past_key_values.layers) == small.LAYERS - len(small.REMOVED)


def test_fuse_takes_it(tmp_path: Path) -> None:
    small.make(tmp_path, "qwen3", layers=4, removed=(1, 2))
    model, ids = fxfuse.load_pretrained(tmp_path), small.ids()
    with silenced():
        program, report = fxfuse.fuse(model, (ids,), **ANY_LOSS)
        found = program.module()(ids)
    assert [len(group.blocks) for group in report.groups] == [3]
    close(
        found if isinstance(found, torch.Tensor) else found.logits,
        logits(parallel(model, [(0, 1, 2), (3,)]), ids),
    )


def test_attention_can_still_be_removed(tmp_path: Path) -> None:
    small.make(tmp_path / "first", removed=(1,), layers=4)
    other = small.make(tmp_path / "second", removed=(1, 2), layers=4)
    with silenced():
        less = fxfuse.remove_attention(fxfuse.load_pretrained(tmp_path / "first"), "2")
    assert less.model.layers[2].self_attn is None
    torch.testing.assert_close(logits(less, small.ids()), other.logits(small.ids()), rtol=0, atol=0)
    assert generate(less, small.ids()) == generate(other.whole, small.ids(), use_cache=False)
