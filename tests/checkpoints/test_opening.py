"""Opening: config.json held against the tensors, every contradiction told in a sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.settings import ACTIVATIONS
from fxfuse.errors import InputError
from tests.checkpoints import llama
from tests.checkpoints.hand import draw, folder_of
from tests.loading import small


def refused(folder: Path, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)) as error:
        open_checkpoint(folder)
    assert error.value.exit_code == 2
    assert str(error.value).endswith(".")


# What opens


@pytest.mark.parametrize("family", small.FAMILIES)
def test_every_family_of_transformers_opens(family: str, tmp_path: Path) -> None:
    """Names and shapes are those of the stock model, no more and no less, or opening would say so."""
    small.make(tmp_path, family, widths={3: 128}, without_ffn=(5,))
    found = open_checkpoint(tmp_path)
    assert found.dialect == "per_layer_config"
    assert [layer.attention for layer in found.layers] == [True, False, False, True, False, True]
    assert [layer.intermediate_size for layer in found.layers] == [256, 256, 256, 128, 256, 0]


def test_tensors_of_a_half_that_is_skipped_may_lie_there(tmp_path: Path) -> None:
    llama.write(tmp_path, llama.tensors(removed=()))
    assert not open_checkpoint(tmp_path).layers[2].attention


def test_stored_angles_and_a_tied_output_are_passed_over(tmp_path: Path) -> None:
    stored = llama.tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": draw(3)}
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    llama.write(tmp_path, stored, tie_word_embeddings=True)
    assert len(open_checkpoint(tmp_path).layers) == llama.LAYERS


def test_settings_that_are_not_there_are_their_familys_defaults(tmp_path: Path) -> None:
    """Llama has as many key-value heads as heads where none are given."""
    stored = {
        name: torch.cat([value, value]) if ("k_proj" in name or "v_proj" in name) else value
        for name, value in llama.tensors().items()
    }
    llama.write(tmp_path, stored, num_key_value_heads=None)
    assert open_checkpoint(tmp_path).hidden_size == llama.HIDDEN


# What contradicts the tensors


def test_a_width_that_is_not_the_tensors(tmp_path: Path) -> None:
    llama.write(tmp_path, intermediate_size=64)
    refused(tmp_path, "the FFN of layer 0 is 64 wide, and model.layers.0.mlp.gate_proj.weight is 32 wide: ")
    llama.write(tmp_path, per_layer_config=llama.skips() | {"1": {"intermediate_size": 48}})
    refused(tmp_path, "the FFN of layer 1 is 48 wide, and model.layers.1.mlp.gate_proj.weight is 32 wide: ")


def test_only_down_tells_of_another_width(tmp_path: Path) -> None:
    stored = llama.tensors() | {"model.layers.0.mlp.down_proj.weight": draw(llama.HIDDEN, 20)}
    llama.write(tmp_path, stored)
    refused(
        tmp_path,
        "the FFN of layer 0 is 32 wide, and model.layers.0.mlp.down_proj.weight is 20 wide: correct",
    )


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"hidden_size": 32}, "model.embed_tokens.weight must be of shape [40, 32], and it is of [40, 24]"),
        ({"vocab_size": 41}, "model.embed_tokens.weight must be of shape [41, 24], and it is of [40, 24]"),
        ({"num_key_value_heads": 4}, "k_proj.weight must be of shape [24, 24], and it is of [12, 24]"),
        ({"head_dim": 12}, "q_proj.weight must be of shape [48, 24], and it is of [24, 24]"),
        ({"attention_bias": True}, "has attention, and model.layers.0.self_attn.q_proj.bias is missing"),
        ({"mlp_bias": True}, "has an FFN, and model.layers.0.mlp.gate_proj.bias is missing: copy it there."),
        ({"num_hidden_layers": 4}, "model.layers.4.input_layernorm.weight has no place in a model of"),
        ({"num_hidden_layers": 6}, "layer 5 has attention, and model.layers.5.input_layernorm.weight is"),
        ({"per_layer_config": llama.skips((2,))}, "name the layer in per_layer_config as one that skips"),
        ({"per_layer_config": None}, "layer 2 has attention, and model.layers.2.input_layernorm.weight is"),
    ],
)  # fmt: skip
def test_config_against_tensors(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    refused(llama.write(tmp_path, **config), told)


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"])
def test_a_tensor_outside_of_layers_is_missing(tmp_path: Path, name: str) -> None:
    stored = llama.tensors()
    del stored[name]
    refused(llama.write(tmp_path, stored), f"{name} is missing in {tmp_path}")


def test_a_tensor_without_a_place(tmp_path: Path) -> None:
    stored = llama.tensors() | {"model.layers.1.mlp.experts.0.w1.weight": draw(3)}
    refused(
        llama.write(tmp_path, stored), "model.layers.1.mlp.experts.0.w1.weight has no place in a model of"
    )


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    stored = llama.tensors() | {name: torch.zeros(llama.WIDTH, llama.HIDDEN, dtype=torch.int8)}
    refused(
        llama.write(tmp_path, stored),
        f"{name} is of type I8, which cannot be fused: give the checkpoint before",
    )


# What contradicts itself, or is no config


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"hidden_size": None}, "config.json has no hidden_size, which must be a positive whole number"),
        ({"hidden_size": "24"}, "config.json gives hidden_size as '24', which must be a positive"),
        ({"num_hidden_layers": 0}, "gives num_hidden_layers as 0"),
        ({"num_attention_heads": True}, "gives num_attention_heads as True"),
        ({"intermediate_size": None}, "config.json has no intermediate_size"),
        ({"head_dim": -1}, "gives head_dim as -1"),
        ({"vocab_size": 0}, "gives vocab_size as 0"),
        ({"num_key_value_heads": 3}, "has 4 heads, which its 3 key-value heads do not divide: correct it."),
        ({"hidden_act": "nonsense"}, "gives hidden_act as 'nonsense', which transformers does not know: "),
        ({"hidden_act": ["silu"]}, "gives hidden_act as ['silu'], which transformers does not know"),
        ({"per_layer_config": llama.skips() | {"1": {"hidden_act": "none"}}}, "gives hidden_act as 'none', "),
        ({"rms_norm_eps": -1}, "gives rms_norm_eps as -1, which must be a number above 0: correct it, to"),
        ({"rms_norm_eps": 0.0}, "gives rms_norm_eps as 0.0, which must be a number above 0"),
        ({"rms_norm_eps": float("nan")}, "gives rms_norm_eps as nan, which must be a number above 0"),
        ({"rms_norm_eps": "1e-5"}, "gives rms_norm_eps as '1e-5', which must be a number above 0"),
        ({"quantization_config": {"quant_method": "gptq"}}, "holds quantised weights: give the checkpoint"),
        ({"model_type": "mixtral"}, "A checkpoint of mixtral cannot be fused: its FFNs are experts"),
        ({"model_type": "mamba"}, "Checkpoints of mamba are not known"),
        ({"model_type": None}, "names no model_type"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    refused(llama.write(tmp_path, **config), told)


def test_activations_are_those_of_transformers() -> None:
    from transformers.activations import ACT2FN

    assert set(ACT2FN) <= set(ACTIVATIONS)


def test_no_config(tmp_path: Path) -> None:
    refused(folder_of(tmp_path, llama.tensors()), f"There is no {tmp_path / 'config.json'}")


@pytest.mark.parametrize(
    ("text", "told"), [("{", "is not JSON: copy it anew."), ("[1]", "holds no JSON object")]
)
def test_a_broken_config(tmp_path: Path, text: str, told: str) -> None:
    llama.write(tmp_path)
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, told)


def test_a_config_that_is_a_folder(tmp_path: Path) -> None:
    folder_of(tmp_path, llama.tensors())
    (tmp_path / "config.json").mkdir()
    refused(tmp_path, "config.json cannot be read: Is a directory.")
