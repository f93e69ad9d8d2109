"""Tokenizers are carried over, and read by onnxruntime-genai."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fxfuse.genai.api import export_genai
from tests.genai.models import decoder

pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai-cuda has no wheel for this Python")


def tokenizer() -> Any:
    """A byte-level BPE of the printable characters that the small vocabulary has room for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:90]
    words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", *letters])}
    made = Tokenizer(models.BPE({**words, "el": len(words)}, [("e", "l")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.mark.parametrize("given", ["object", "folder", "where the model was loaded from"])
def test_a_tokenizer(given: str, tmp_path: Path) -> None:
    import onnxruntime_genai as og

    folder, model, made = tmp_path / "source", decoder(), tokenizer()
    made.save_pretrained(folder)
    options = {"object": {"tokenizer": made}, "folder": {"tokenizer": folder}}.get(given, {})
    if not options:
        model.config._name_or_path = str(folder)
    report = export_genai(model, tmp_path / "out", provider="cpu", **options)
    assert report.notes == []
    assert {"model.onnx", "genai_config.json", "tokenizer.json", "tokenizer_config.json"} <= set(report.files)
    loaded = og.Tokenizer(og.Model(str(tmp_path / "out")))
    text = "Hello,world"
    assert list(loaded.encode(text)) == made(text)["input_ids"]
    assert loaded.decode(loaded.encode(text)) == text


def test_none(tmp_path: Path) -> None:
    (note,) = export_genai(decoder(), tmp_path / "out", provider="cpu").notes
    assert (
        note == "no tokenizer was found, so the folder generates from token ids alone: give the folder of one"
    )


def test_one_that_transformers_cannot_load(tmp_path: Path) -> None:
    """The files go as they are."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"version": "of another world"}')
    report = export_genai(decoder(), tmp_path / "out", provider="cpu", tokenizer=folder)
    assert report.notes[0].startswith(
        "the tokenizer's files were copied as they are, since transformers cannot"
    )
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
