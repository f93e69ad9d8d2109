"""One model, written in every dialect that others write: loaded, it computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import fxfuse
from tests.loading import small
from tests.loading.test_caches import generate
from tests.loading.test_families import logits

NARROW = {1: 256, 4: 768}
ATTENTIONS = [layer for layer in range(small.LAYERS) if layer not in small.REMOVED]


def blocks(ffn: dict[int, dict[str, Any]], attention: dict[str, Any]) -> list[dict[str, Any]]:
    """`block_configs` of a model that lacks `small.REMOVED`."""
    return [
        {
            "attention": attention if layer in ATTENTIONS else {"no_op": True},
            "ffn": {"no_op": False, **ffn[layer]},
        }
        for layer in range(small.LAYERS)
    ]


def as_nemotron_nas(made: small.Small) -> None:
    """As published configs are: a float for each width, nulls at the top level."""
    mults = {
        layer: {"ffn_mult": 1.5 * NARROW.get(layer, 1024) / small.HIDDEN} for layer in range(small.LAYERS)
    }
    made.configure(
        model_type="nemotron-nas",
        architectures=["DeciLMForCausalLM"],
        auto_map={"AutoConfig": "configuration_decilm.DeciLMConfig"},
        block_configs=blocks(mults, {"n_heads_in_group": 2}),
        per_layer_config=None,
        intermediate_size=None,
        num_key_value_heads=None,
        rope_parameters=None,
        rope_theta=5e4,
        rope_scaling=None,
        dtype=None,
        torch_dtype="float32",
    )


def as_anymodel(made: small.Small) -> None:
    """The family's config with a block for each layer."""
    widths = {layer: {"intermediate_size": NARROW.get(layer, 1024)} for layer in range(small.LAYERS)}
    attention = {"no_op": False, "num_key_value_heads": small.KEYS}
    made.configure(block_configs=blocks(widths, attention), per_layer_config=None)


def as_per_layer(made: small.Small) -> None:
    """As transformers writes it."""


@pytest.mark.parametrize("dialect", [as_per_layer, as_nemotron_nas, as_anymodel])
def test_a_dialect_gives_the_same_model(dialect: Any, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e4}
    made = small.make(tmp_path, intermediate_size=1024, widths=NARROW, rope_parameters=rope)
    dialect(made)
    model, ids = fxfuse.load_pretrained(tmp_path), small.ids()
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.model_type == "llama"
    torch.testing.assert_close(logits(model, ids), made.logits(ids), rtol=1e-4, atol=1e-4)
    widths = [layer.mlp.down_proj.in_features for layer in model.model.layers]
    assert widths == [NARROW.get(layer, 1024) for layer in range(small.LAYERS)]
    assert len(DynamicCache(config=model.config).layers) == len(ATTENTIONS)
    assert generate(model, ids) == generate(model, ids, use_cache=False)


@pytest.mark.parametrize("keep", [True, False], ids=["tensors-left", "tensors-gone"])
@pytest.mark.parametrize("as_flags", [True, False], ids=["flags", "numbers"])
def test_llm_drop(keep: bool, as_flags: bool, tmp_path: Path) -> None:
    """Its tensors are often still in the files, and are not read."""
    made = small.make(tmp_path, "mistral", keep_tensors=keep)
    numbers = list(small.REMOVED)
    flags = [layer in numbers for layer in range(small.LAYERS)]
    made.configure(drop_attn_list=flags if as_flags else numbers, drop_mlp_list=[], per_layer_config=None)
    model = fxfuse.load_pretrained(tmp_path)
    assert model.model.layers[1].self_attn is None
    torch.testing.assert_close(logits(model, small.ids()), made.logits(small.ids()), rtol=0, atol=0)


def test_sharded_files_in_a_folder_below(tmp_path: Path) -> None:
    """An index may name files further down, as AnyModel's does."""
    import json

    from safetensors.torch import load_file, save_file

    made = small.make(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "subblocks_safetensors").mkdir()
    names: dict[str, str] = {}
    for part in range(3):
        file = f"subblocks_safetensors/part_{part}.safetensors"
        own = {name: value for n, (name, value) in enumerate(weights.items()) if n % 3 == part}
        save_file(own, tmp_path / file)
        names |= dict.fromkeys(own, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    model = fxfuse.load_pretrained(tmp_path)
    torch.testing.assert_close(logits(model, small.ids()), made.logits(small.ids()), rtol=0, atol=0)
