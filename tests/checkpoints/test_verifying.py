"""verify: what is broken for everybody, and what each reader insists on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fxfuse.checkpoints.reader_names import LLAMA_CPP, MLX, READERS, TRT, VLLM
from fxfuse.checkpoints.verifying import verify_checkpoint
from fxfuse.cli import main
from fxfuse.errors import InputError
from tests.checkpoints import llama
from tests.checkpoints.fusing import change, drop, laid_out, nas, put, read, words
from tests.checkpoints.hand import draw, folder_of
from tests.loading import small

NAS_READERS = (MLX, VLLM, LLAMA_CPP, TRT)


def loaded_by(folder: Path) -> list[str]:
    return [each.reader for each in verify_checkpoint(folder).readings if each.loads]


# Who loads what


def test_nemotron_nas(tmp_path: Path) -> None:
    assert loaded_by(nas(tmp_path)) == ["fxfuse", *NAS_READERS]


def test_nemotron_nas_before_fusing(tmp_path: Path) -> None:
    assert loaded_by(nas(tmp_path, fuse=False)) == ["fxfuse", *NAS_READERS]


def test_per_layer_config(tmp_path: Path) -> None:
    verdict = verify_checkpoint(llama.write(tmp_path))
    assert [each.reader for each in verdict.readings if each.loads] == ["fxfuse"]
    assert "load it with fxfuse.load_pretrained" in verdict.by("transformers").problems[0]
    assert verdict.by("vLLM").problems == ("it builds all layers of llama alike: write it as nemotron-nas",)
    assert "write it as anymodel" in verdict.by("Model-Optimizer").problems[0]


def test_a_family_that_nemotron_nas_cannot_hold(tmp_path: Path) -> None:
    small.make(tmp_path, "gemma")
    told = (
        "it builds all layers of gemma alike, and nemotron-nas, the form that it reads, holds no gemma: its "
        "embeddings are scaled and its activation is gelu_pytorch_tanh",
    )
    assert verify_checkpoint(tmp_path).by(VLLM).problems == told


def test_any_model(tmp_path: Path) -> None:
    out = put(*laid_out(llama.write(tmp_path / "in"), "anymodel"), tmp_path / "out")
    assert loaded_by(out) == ["fxfuse", "Model-Optimizer"]


def test_plain(tmp_path: Path) -> None:
    folder = llama.write(tmp_path, llama.tensors(removed=()), per_layer_config=None)
    assert loaded_by(folder) == [name for name in READERS if name != "Model-Optimizer"]


# Files


def test_tensors_that_readers_would_stumble_over(tmp_path: Path) -> None:
    folder = nas(tmp_path, fuse=False)
    folder_of(folder, read(folder) | {"model.layers.2.input_layernorm.weight": draw(llama.HIDDEN)})
    for reader in NAS_READERS:
        told = verify_checkpoint(folder).by(reader).problems
        assert told == ("model.layers.2.input_layernorm.weight has no place in the model",)
    assert verify_checkpoint(folder).by("fxfuse").loads


def test_names_of_files(tmp_path: Path) -> None:
    folder = nas(tmp_path)
    (folder / "model-old.safetensors").write_bytes(b"")
    for reader in ("mlx-lm", "llama.cpp"):
        told = verify_checkpoint(folder).by(reader).problems
        assert told == ("model-old.safetensors is read too, and the index does not know it",)
    assert verify_checkpoint(folder).by("vLLM").loads
    (folder / "model-old.safetensors").unlink()
    (folder / "parts").mkdir()
    (folder / "model.safetensors").rename(folder / "parts" / "model.safetensors")
    names = dict.fromkeys(read(folder / "parts"), "parts/model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    verdict = verify_checkpoint(folder)
    assert "names must begin with model, beside config.json" in verdict.by("mlx-lm").problems[0]
    assert verdict.by("vLLM").problems == (
        "parts/model.safetensors is not found: files must lie beside config.json",
    )


@pytest.mark.parametrize(
    ("model", "fits"),
    [
        ({"type": "BPE", "byte_fallback": True}, True),
        ({"type": "BPE", "byte_fallback": False}, False),
        ({"type": "Unigram"}, False),
        (None, False),
    ],
)
def test_the_tokenizer_of_llama_cpp(tmp_path: Path, model: dict[str, Any] | None, fits: bool) -> None:
    folder = nas(tmp_path)
    (folder / "tokenizer.model").unlink()
    if model is not None:
        (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    found = verify_checkpoint(folder).by("llama.cpp")
    assert found.loads is fits
    assert fits or "a tokenizer of 40 tokens, and not 128256, must be of Llama 2's kind" in found.problems[0]


def test_it_claims_no_more_than_it_read(tmp_path: Path) -> None:
    """A NaN in a weight goes unnoticed, and the verdict says that weights were not looked at."""
    stored = llama.tensors()
    stored["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    verdict = verify_checkpoint(llama.write(tmp_path, stored))
    assert verdict.loads
    assert str(verdict).endswith("\n  checked: headers, config and padding, not the values of weights")


# What no reader loads


def test_a_config_that_contradicts_the_tensors(tmp_path: Path) -> None:
    """Everything is told, not the first alone."""
    verdict = verify_checkpoint(llama.write(tmp_path, vocab_size=41))
    assert len(verdict.problems) == 2
    assert not verdict.loads
    assert not any(each.loads for each in verdict.readings)
    assert "broken: By " in str(verdict)


def test_padding_that_is_not_zero(tmp_path: Path) -> None:
    folder = nas(tmp_path)
    layers = [{"number": 0, "padding": 224}, {"number": 9, "padding": 1}, {"number": 1}]
    record = {"kind": "fxfuse checkpoint", "format": 1, "layers": layers}
    (folder / "fxfuse.json").write_text(json.dumps(record))
    assert verify_checkpoint(folder).loads
    stored = read(folder)
    stored["model.layers.0.mlp.gate_proj.weight"][-1, -1] = 1
    folder_of(folder, stored)
    told = "The last 224 channels of model.layers.0.mlp.gate_proj.weight are padding and not zero"
    assert told in verify_checkpoint(folder).problems[0]


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"There is no folder {tmp_path / 'none'}")):
        verify_checkpoint(tmp_path / "none")


# Model-Optimizer


def test_a_descriptor_has_no_biases(tmp_path: Path) -> None:
    small.make(tmp_path / "in", "llama")
    found = verify_checkpoint(put(*laid_out(tmp_path / "in", "anymodel"), tmp_path / "out"))
    told = "its descriptor of llama has no place for biases (attention_bias)"
    assert told in found.by("Model-Optimizer").problems


def test_a_family_without_a_descriptor(tmp_path: Path) -> None:
    small.make(tmp_path, "gemma")
    blocks = [
        {"attention": {"no_op": n in small.REMOVED}, "ffn": {"intermediate_size": small.WIDTH}}
        for n in range(small.LAYERS)
    ]
    change(tmp_path, drop("per_layer_config"))
    found = verify_checkpoint(change(tmp_path, words(block_configs=blocks))).by("Model-Optimizer").problems
    assert found[0] == "it has no descriptor of gemma"
    assert "the attention of layer 0 has no num_key_value_heads in its block_config" in found


# The command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = nas(tmp_path)
    assert main(["verify", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"{folder}: nemotron-nas as nemotron-nas, 3 layers, 3 with attention" in shown
    assert "vLLM             loads, told to trust the folder's code (--trust-remote-code)" in shown
    assert "transformers     no: " in shown


def test_the_command_asks_for_a_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = llama.write(tmp_path)
    assert main(["verify", str(folder), "--reader", "fxfuse"]) == 0
    assert main(["verify", str(folder), "--reader", "fxfuse", "--reader", "mlx-lm"]) == 1
    capsys.readouterr()


def test_the_command_on_what_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(llama.write(tmp_path, vocab_size=41))]) == 1
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_the_command_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, path = llama.write(tmp_path / "in"), tmp_path / "verdict.json"
    assert main(["verify", str(folder), "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["kind"] == "fxfuse verdict"
    assert [each["reader"] for each in found["readings"] if each["loads"]] == ["fxfuse"]
    capsys.readouterr()
    assert main(["verify", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main(["verify", str(folder), "--json", str(folder / "config.json")]) == 2
    assert "would overwrite" in capsys.readouterr().err
