"""The rules of nemotron-nas's readers, each broken once: told for those who have it, and for no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fxfuse.checkpoints.reader_names import LLAMA_CPP, MLX, TRT, VLLM
from fxfuse.checkpoints.verifying import verify_checkpoint
from tests.checkpoints import llama
from tests.checkpoints.fusing import Edit, block, change, drop, laid_out, nas, put, read, without, words
from tests.checkpoints.hand import draw, folder_of
from tests.loading import small

NAS_READERS = (MLX, VLLM, LLAMA_CPP, TRT)

RULES: list[tuple[Edit, str, tuple[str, ...]]] = [
    (words(architectures=["LlamaForCausalLM"]), "and not ['DeciLMForCausalLM']", (VLLM, LLAMA_CPP, TRT)),
    (drop("auto_map"), "has no auto_map with an AutoConfig", (VLLM, TRT)),
    (words(auto_map={"AutoConfig": "a.B"}), "a.py, which auto_map names, is not in", (VLLM, TRT)),
    (words(torch_dtype=None), "config.json has no torch_dtype", (TRT,)),
    (without(1, "ffn", "no_op"), "the ffn of layer 1 has no no_op", (VLLM, LLAMA_CPP, TRT)),
    (block(1, "attention", fast=True), "the attention of layer 1 has 'fast'", (MLX,)),
    (block(1, "ffn", ffn_mult=16), "the ffn_mult of layer 1 is 16, and not a float", NAS_READERS),
    (words(hidden_act="gelu"), "its activation is gelu, and not silu", NAS_READERS),
    (drop("rope_theta"), "rope_theta is not at the top level", (MLX,)),
    (words(rope_scaling={"rope_type": "linear"}), "has no factor or no rope_type", (MLX,)),
    (words(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "of yarn are taken for plain", (LLAMA_CPP,)),
    (words(rope_scaling={"rope_type": "su", "factor": 2.0}), "of su are not known", (MLX,)),
    (
        words(rope_scaling={"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 64}),
        "original_max_position_embeddings is 8192 at the top level, and 64 in rope_scaling",
        (LLAMA_CPP,),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "told", "readers"), RULES)
def test_rules(tmp_path: Path, edit: Edit, told: str, readers: tuple[str, ...]) -> None:
    """The rule is told for the readers that have it, and for no other."""
    verdict = verify_checkpoint(change(nas(tmp_path), edit))
    assert not verdict.problems
    found = [each.reader for each in verdict.readings if any(told in problem for problem in each.problems)]
    assert found == list(readers)


def test_a_width_that_no_ffn_mult_gives(tmp_path: Path) -> None:
    """As one reader takes it from intermediate_size."""
    folder = nas(tmp_path)
    stored = {name: found for name, found in read(folder).items() if "layers.1.mlp" not in name}
    stored |= {name: found for name, found in llama.ffn(1, 300).items() if "mlp" in name}
    folder_of(folder, stored)
    change(folder, block(1, "ffn", intermediate_size=300))
    for reader in NAS_READERS:
        told = verify_checkpoint(folder).by(reader).problems
        assert "the FFN of layer 1 is 300 wide, and not a multiple of 256" in told


def test_an_ffn_mult_that_only_rounding_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """6 decimals of it make 256, and the whole of it 257, which is 512: 257 * 3 / 56 = 13.7678571..."""
    monkeypatch.setattr(llama, "HIDDEN", 28)
    folder = change(nas(tmp_path, hidden_size=28), block(1, "ffn", ffn_mult=13.7678573))
    assert verify_checkpoint(folder).by(MLX).loads
    assert "makes 512 of its 256 channels" in verify_checkpoint(folder).by(VLLM).problems[0]


def test_layers_that_some_readers_refuse(tmp_path: Path) -> None:
    """No attention in layer 0, and attention alone in layer 2: FFNs 1 and 3 stay."""
    stored = nas_tensors((0, 3), (2,))
    blocks = [entry(attention=n not in (0, 3), ffn=n != 2) for n in range(llama.LAYERS)]
    folder = nas(tmp_path)
    folder_of(folder, stored)
    change(folder, words(block_configs=blocks, num_hidden_layers=llama.LAYERS))
    verdict = verify_checkpoint(folder)
    assert not verdict.problems
    assert verdict.by(VLLM).problems == ("layer 0 has no attention",)
    assert verdict.by(LLAMA_CPP).problems == (
        "layer 0 has no attention", "layer 2 is attention alone, which is left out"
    )  # fmt: skip
    assert verdict.by(MLX).loads


def entry(*, attention: bool, ffn: bool) -> dict[str, Any]:
    """A block_config with the keys that readers need."""
    return {
        "attention": {
            "no_op": not attention,
            "n_heads_in_group": 2 if attention else None,
            "replace_with_linear": False,
        },
        "ffn": {"no_op": not ffn, "ffn_mult": 16.0 if ffn else None, "replace_with_linear": False},
    }


def nas_tensors(removed: tuple[int, ...], without_ffn: tuple[int, ...]) -> dict[str, torch.Tensor]:
    found = llama.tensors(removed, without_ffn)
    for layer in range(llama.LAYERS):
        found |= {} if layer in without_ffn else llama.ffn(layer, 256)
    return found


def test_no_attention_at_all(tmp_path: Path) -> None:
    folder = nas(tmp_path)
    every = range(llama.LAYERS)
    folder_of(folder, nas_tensors(tuple(every), ()))
    blocks = [entry(attention=False, ffn=True) for _ in every]
    change(folder, words(block_configs=blocks, num_hidden_layers=llama.LAYERS))
    for reader in (MLX, TRT):
        assert verify_checkpoint(folder).by(reader).problems == ("no layer has attention",)


def test_heads_of_another_size(tmp_path: Path) -> None:
    folder = nas(tmp_path)
    stored = read(folder)
    for layer in range(3):
        for name, rows in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16)):
            stored[f"model.layers.{layer}.self_attn.{name}.weight"] = draw(rows, llama.HIDDEN)
        stored[f"model.layers.{layer}.self_attn.o_proj.weight"] = draw(llama.HIDDEN, 32)
    folder_of(folder, stored)
    verdict = verify_checkpoint(change(folder, words(head_dim=8)))
    told = ("a head has 8 channels, and not 24 / 4",)
    assert [each.reader for each in verdict.readings if each.problems == told] == [
        "mlx-lm",
        "llama.cpp",
        "TensorRT-LLM",
    ]
    assert verdict.by(VLLM).loads


def test_biases(tmp_path: Path) -> None:
    small.make(tmp_path / "in", "llama")
    out = put(*laid_out(tmp_path / "in", "nemotron-nas"), tmp_path / "out")
    verdict = verify_checkpoint(out)
    assert verdict.by(TRT).problems == (
        "its products have biases (attention_bias)", "its products have biases (mlp_bias)"
    )  # fmt: skip
    assert verdict.by(VLLM).loads
