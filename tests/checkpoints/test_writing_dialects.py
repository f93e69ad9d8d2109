"""Configs that are written: each dialect's own fields, what it cannot hold, and what is read back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxfuse.checkpoints.dialects import config_of
from fxfuse.checkpoints.dialects.blocks import width_of
from fxfuse.checkpoints.dialects.nemotron_nas import ffn_mult_of, padding_of
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.errors import InputError
from tests.checkpoints import llama
from tests.checkpoints.fusing import laid_out, put
from tests.loading import small

LLAMA_LIKE = {
    "llama": {}, "mistral": {"sliding_window": None, "head_dim": None}, "phi3": {}, "granite": {}
}  # fmt: skip


def written(folder: Path, dialect: str, *, fuse: bool = True) -> dict[str, Any]:
    return config_of(*laid_out(folder, dialect, fuse=fuse))


# ffn_mult


@given(hidden=st.integers(1, 100_000), blocks=st.integers(1, 100_000))
def test_ffn_mult_gives_back_the_width(hidden: int, blocks: int) -> None:
    """As written in JSON, for readers that round it and for those that do not."""
    width = 256 * blocks
    text = json.dumps(ffn_mult_of(width, hidden))
    ffn_mult = json.loads(text)
    assert isinstance(ffn_mult, float)
    assert ffn_mult == round(ffn_mult, 6)
    assert width_of(ffn_mult, hidden) == width
    plain = int(2 * ffn_mult * hidden / 3)
    assert plain + -plain % 256 == width


def test_ffn_mult_of_published_models() -> None:
    """Llama-3_1-Nemotron-51B and Ultra-253B write 5.25 for 28672 at 8192, and 4.875 for 53248 at 16384."""
    assert ffn_mult_of(28672, 8192) == 5.25
    assert ffn_mult_of(53248, 16384) == 4.875


@given(width=st.integers(1, 10_000_000))
def test_padding_reaches_the_next_multiple(width: int) -> None:
    assert (width + padding_of(width)) % 256 == 0
    assert 0 <= padding_of(width) < 256


# nemotron-nas


def test_config_of_nemotron_nas(tmp_path: Path) -> None:
    config = written(llama.write(tmp_path), "nemotron-nas")
    assert config["model_type"] == "nemotron-nas"
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert config["rope_theta"] == 5000.0
    assert config["rope_scaling"] is None
    assert config["torch_dtype"] == "float32"
    assert config["num_hidden_layers"] == len(config["block_configs"]) == 3
    for block in config["block_configs"]:
        assert block["attention"]["n_heads_in_group"] == 2
        assert width_of(block["ffn"]["ffn_mult"], llama.HIDDEN) == 256
        assert isinstance(block["ffn"]["ffn_mult"], float)
    assert "per_layer_config" not in config


def test_the_type_is_named_though_the_source_does_not(tmp_path: Path) -> None:
    assert written(llama.write(tmp_path, torch_dtype=None), "nemotron-nas")["torch_dtype"] == "float32"


def test_absent_attention_in_nemotron_nas(tmp_path: Path) -> None:
    blocks = written(llama.write(tmp_path), "nemotron-nas", fuse=False)["block_configs"]
    assert [block["attention"]["no_op"] for block in blocks] == [False, False, True, True, False]
    assert blocks[2]["attention"]["n_heads_in_group"] is None


def test_rotary_embeddings_stand_where_readers_look(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 4096,
    }  # fmt: skip
    config = written(llama.write(tmp_path, rope_theta=None, rope_parameters=rope), "nemotron-nas")
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"]["factor"] == 8.0
    assert "rope_theta" not in config["rope_scaling"]
    assert config["original_max_position_embeddings"] == 4096
    assert "rope_parameters" not in config


def test_older_names_of_rotary_embeddings(tmp_path: Path) -> None:
    folder = llama.write(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})
    assert written(folder, "nemotron-nas")["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_padding_is_zeros_that_change_nothing(tmp_path: Path) -> None:
    stored = llama.tensors()
    found, layout = laid_out(llama.write(tmp_path, stored), "nemotron-nas")
    assert [layer.padding for layer in layout.layers] == [224, 160, 224]
    tensors = llama.all_made(found, layout)
    for number, width in ((0, 32), (1, 96), (2, 32)):
        prefix = f"model.layers.{number}.mlp"
        assert tensors[f"{prefix}.gate_proj.weight"].shape == (256, llama.HIDDEN)
        assert not tensors[f"{prefix}.gate_proj.weight"][width:].any()
        assert not tensors[f"{prefix}.up_proj.weight"][width:].any()
        assert tensors[f"{prefix}.down_proj.weight"].shape == (llama.HIDDEN, 256)
        assert not tensors[f"{prefix}.down_proj.weight"][:, width:].any()
    assert torch.equal(
        tensors["model.layers.2.mlp.up_proj.weight"][:32], stored["model.layers.4.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("family", LLAMA_LIKE)
def test_llamas_of_other_names_compute_the_same(family: str, tmp_path: Path) -> None:
    """Packed products are taken apart, multipliers are in the weights; nothing is fused here."""
    import fxfuse

    source = small.make(tmp_path / "in", family, **LLAMA_LIKE[family])
    folder = put(*laid_out(source.folder, "nemotron-nas", fuse=False), tmp_path / "out")
    ids = small.ids()
    with torch.no_grad():
        found = fxfuse.load_pretrained(folder)(input_ids=ids, use_cache=False).logits
    wanted = source.logits(ids)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_tied_embeddings_part_where_multipliers_differ(tmp_path: Path) -> None:
    """Granite multiplies embeddings by one number and divides logits by another."""
    small.make(tmp_path / "a", "granite", tie_word_embeddings=True)
    found, layout = laid_out(tmp_path / "a", "nemotron-nas")
    assert config_of(found, layout)["tie_word_embeddings"] is False
    tensors = llama.all_made(found, layout)
    whole = found.tensors.read("model.embed_tokens.weight")
    assert torch.equal(tensors["model.embed_tokens.weight"], whole * 3)
    assert torch.equal(tensors["lm_head.weight"], whole / 2)
    small.make(tmp_path / "b", "llama", tie_word_embeddings=True)
    found, layout = laid_out(tmp_path / "b", "nemotron-nas")
    assert config_of(found, layout)["tie_word_embeddings"] is True
    assert "lm_head.weight" not in llama.all_made(found, layout)


def test_the_code_that_comes_along_reads_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM does, which wants the entries as objects."""
    from transformers import AutoConfig

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = put(*laid_out(llama.write(tmp_path / "in"), "nemotron-nas"), tmp_path / "out")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.model_type == "nemotron-nas"
    assert config.block_configs[1].attention.n_heads_in_group == 2
    assert config.block_configs[1].ffn.ffn_mult == 1.5 * 256 / llama.HIDDEN
    assert config.rope_parameters["rope_theta"] == 5000.0
    config.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["block_configs"] == json.loads((folder / "config.json").read_text())["block_configs"]


# What it cannot hold


@pytest.mark.parametrize(
    ("family", "own", "told"),
    [
        ("qwen2", {}, "it holds Llama's layers alone, and its attention has biases on q, k and v"),
        ("qwen3", {}, "it holds Llama's layers alone, and its attention normalises queries and keys"),
        ("gemma", {}, "it holds Llama's layers alone, and its embeddings are scaled"),
        (
            "mistral",
            {"sliding_window": None},
            "has 64 / 4 channels in it, and here it has 8 (head_dim)",
        ),
        ("mistral", {"head_dim": None}, "over all, and here over 6 tokens (sliding_window)"),
        ("llama", {"hidden_act": "gelu"}, "its readers know the activation silu, and here it is gelu"),
        ("phi3", {"partial_rotary_factor": 0.5}, "and here a part (partial_rotary_factor 0.5)"),
    ],
)
def test_families_that_are_no_llama(tmp_path: Path, family: str, own: dict[str, Any], told: str) -> None:
    small.make(tmp_path, family, **own)
    message = f"nemotron-nas cannot hold this model: .*{re.escape(told)}.*; write it as per_layer_config."
    with pytest.raises(InputError, match=message):
        laid_out(tmp_path, "nemotron-nas")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"rope_scaling": {"rope_type": "longrope"}}, "dynamic, llama3, yarn, and not longrope"),
        (
            {"per_layer_config": llama.skips() | {"0": {"sliding_window": 8}}},
            "it has no place for the sliding_window that layer 0 has of its own",
        ),
    ],
)
def test_configs_that_are_no_llama(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        laid_out(llama.write(tmp_path, **config), "nemotron-nas")


def test_layers_that_its_readers_refuse(tmp_path: Path) -> None:
    first = llama.write(tmp_path / "a", llama.tensors((0,)), per_layer_config=llama.skips((0,)))
    with pytest.raises(InputError, match="its first layer has attention, and layer 0 here has none"):
        laid_out(first, "nemotron-nas", fuse=False)
    alone = llama.tensors((2, 3), (4,)), llama.skips((2, 3), (4,))
    with pytest.raises(InputError, match="a layer with attention has an FFN in it, and layer 4 has none"):
        laid_out(llama.write(tmp_path / "b", alone[0], per_layer_config=alone[1]), "nemotron-nas")


# per_layer_config and AnyModel


def test_config_of_per_layer_config(tmp_path: Path) -> None:
    config = written(llama.write(tmp_path), "per_layer_config")
    assert config["per_layer_config"] == {"1": {"intermediate_size": 96}}
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (3, 32)
    assert config["model_type"] == "llama"


def test_numbers_are_padded_so_that_they_sort(tmp_path: Path) -> None:
    stored = llama.tensors((1, 11), layers=12)
    folder = llama.write(tmp_path, stored, per_layer_config=llama.skips((1, 11)), num_hidden_layers=12)
    assert list(written(folder, "per_layer_config", fuse=False)["per_layer_config"]) == ["01", "11"]


def test_transformers_takes_the_per_layer_config(tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = put(*laid_out(llama.write(tmp_path / "in"), "per_layer_config", fuse=False), tmp_path / "out")
    config = AutoConfig.from_pretrained(folder)
    assert config.per_layer_config[2].skip == ["attention"]
    assert config.per_layer_config[1].skip == []


def test_lists_by_layer_follow(tmp_path: Path) -> None:
    """Layers 0, 1 to 3 and 4: each has the entry of its first."""
    types = ["a", "b", "c", "d", "e"]
    config = written(llama.write(tmp_path, layer_types=types), "per_layer_config")
    assert config["layer_types"] == ["a", "b", "e"]


def test_windows_that_are_counted_in_layers_are_written_out(tmp_path: Path) -> None:
    """Qwen2 looks back over a window from layer 3 on, which is layer 1 once 0 to 2 are one."""
    small.make(tmp_path, "qwen2")
    config = {**json.loads((tmp_path / "config.json").read_text())}
    config.pop("layer_types")
    (tmp_path / "config.json").write_text(json.dumps(config))
    full, window = "full_attention", "sliding_attention"
    assert written(tmp_path, "per_layer_config")["layer_types"] == [full, window, window]


def test_config_of_any_model(tmp_path: Path) -> None:
    config = written(llama.write(tmp_path), "anymodel", fuse=False)
    assert config["block_configs"][1] == {
        "attention": {"no_op": False, "num_key_value_heads": 2},
        "ffn": {"no_op": False, "intermediate_size": 32},
    }
    assert config["block_configs"][2]["attention"] == {"no_op": True}
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_any_model_of_a_family_that_has_no_descriptor(tmp_path: Path) -> None:
    small.make(tmp_path, "gemma")
    with pytest.raises(InputError, match="Model-Optimizer describes llama, .*, and not gemma"):
        laid_out(tmp_path, "anymodel")


def test_any_model_has_no_place_for_other_settings_of_a_layer(tmp_path: Path) -> None:
    said = llama.skips() | {"0": {"sliding_window": 8}}
    with pytest.raises(InputError, match="no place for the sliding_window that layer 0 has of its own"):
        laid_out(llama.write(tmp_path, per_layer_config=said), "anymodel")


# From one dialect to another and back


@pytest.mark.parametrize("dialect", ["nemotron-nas", "per_layer_config", "anymodel"])
@pytest.mark.parametrize("fuse", [True, False])
def test_what_is_written_is_read_back(tmp_path: Path, dialect: str, fuse: bool) -> None:
    found, layout = laid_out(llama.write(tmp_path / "in"), dialect, fuse=fuse)
    again = open_checkpoint(put(found, layout, tmp_path / "out"))
    if fuse and dialect == "per_layer_config":
        assert again.dialect == dialect
    assert [(layer.attention, layer.ffn, layer.intermediate_size) for layer in again.layers] == [
        (layer.attention, layer.ffn, layer.intermediate_size) for layer in layout.layers
    ]


@pytest.mark.parametrize("dialect", ["per_layer_config", "anymodel"])
def test_a_nemotron_nas_model_as_a_llama(tmp_path: Path, dialect: str) -> None:
    """Layer 1 has one key-value head, and the others two."""
    stored = llama.tensors() | llama.attention(1, keys=1)
    said = llama.skips() | {"1": {"num_key_value_heads": 1}}
    source = llama.write(tmp_path / "in", stored, per_layer_config=said)
    nas = put(*laid_out(source, "nemotron-nas"), tmp_path / "nas")
    again = put(*laid_out(nas, dialect, fuse=False), tmp_path / "again")
    config = json.loads((again / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert config["num_key_value_heads"] == 2
    assert "auto_map" not in config
    found = open_checkpoint(again)
    assert [layer.intermediate_size for layer in found.layers] == [256, 256, 256]
    assert found.layers[1].own.get("num_key_value_heads") == 1
