"""An output of its own stays, whatever config.json says of tying; a copy of the embeddings is passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fxfuse
from fxfuse.checkpoints import tying
from fxfuse.checkpoints.dialects import WRITTEN
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.verifying import verify_checkpoint
from tests.checkpoints import llama
from tests.checkpoints.drawn import drawn, weights

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tied(folder: Path, head: torch.Tensor | None = None, **config: Any) -> Path:
    """A Llama whose config ties; `head` is stored all the same, by default one that differs."""
    stored = llama.tensors(config.pop("removed", llama.REMOVED))
    stored[HEAD] = stored[HEAD] if head is None else head
    return llama.write(folder, stored, tie_word_embeddings=True, **config)


def ties(folder: Path) -> bool:
    found: bool = json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    return found


@pytest.mark.parametrize("piece", [1, 100, 1 << 24])
def test_bytes_decide(tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tying, "_PIECE", piece)
    table = llama.tensors()[EMBEDDINGS]
    assert open_checkpoint(tied(tmp_path, table)).config["tie_word_embeddings"] is True
    other = table.clone()
    other[-1, -1] += 1
    for head in (other, table.double()):
        assert open_checkpoint(tied(tmp_path, head)).config["tie_word_embeddings"] is False


def test_a_family_that_ties_by_itself(tmp_path: Path) -> None:
    """Gemma's config may leave the word out."""
    drawn(tmp_path / "a", "gemma", files=1, tie_word_embeddings=False)
    path = tmp_path / "a/config.json"
    config = json.loads(path.read_text())
    del config["tie_word_embeddings"]
    path.write_text(json.dumps(config))
    fxfuse.fuse_checkpoint(tmp_path / "a", tmp_path / "out", auto=True)
    assert not ties(tmp_path / "out")
    assert torch.equal(weights(tmp_path / "out")[HEAD], weights(tmp_path / "a")[HEAD])


@pytest.mark.parametrize("dialect", WRITTEN)
def test_an_output_of_its_own_is_kept(tmp_path: Path, dialect: str) -> None:
    source, out = tied(tmp_path / "in"), tmp_path / "out"
    fxfuse.fuse_checkpoint(source, out, auto=True, dialect=dialect)
    assert not ties(out)
    assert torch.equal(weights(out)[HEAD], llama.tensors()[HEAD])
    assert verify_checkpoint(out).loads
    fxfuse.split_checkpoint(out, tmp_path / "back")
    assert torch.equal(weights(tmp_path / "back")[HEAD], llama.tensors()[HEAD])


@pytest.mark.parametrize("dialect", WRITTEN)
def test_a_copy_of_the_embeddings_is_dropped(tmp_path: Path, dialect: str) -> None:
    source = tied(tmp_path / "in", llama.tensors()[EMBEDDINGS])
    fxfuse.fuse_checkpoint(source, tmp_path / "out", auto=True, dialect=dialect)
    assert ties(tmp_path / "out")
    assert HEAD not in weights(tmp_path / "out")


def test_removal_keeps_it_too(tmp_path: Path) -> None:
    source = tied(tmp_path / "in", removed=(), per_layer_config=None)
    fxfuse.remove_attention_checkpoint(source, tmp_path / "less", "2")
    assert not ties(tmp_path / "less")
    assert torch.equal(weights(tmp_path / "less")[HEAD], llama.tensors()[HEAD])


@pytest.mark.parametrize("alike", [True, False], ids=["by transformers", "by fxfuse"])
def test_loading_agrees(tmp_path: Path, alike: bool) -> None:
    """The model computes what the one whose config does not tie computes."""
    config: dict[str, Any] = {"removed": (), "per_layer_config": None} if alike else {}
    found = fxfuse.load_pretrained(tied(tmp_path / "tied", **dict(config)))
    removed = config.pop("removed", llama.REMOVED)
    plain = fxfuse.load_pretrained(llama.write(tmp_path / "plain", llama.tensors(removed), **config))
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(found(ids).logits, plain(ids).logits)
    assert not torch.equal(found.lm_head.weight, found.model.embed_tokens.weight)
