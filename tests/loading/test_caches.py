"""Generation with a cache that has entries for attentions alone."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, GenerationConfig, StaticCache

import fxfuse
from tests.loading import small

NEW = 8
ATTENTIONS = [layer for layer in range(small.LAYERS) if layer not in small.REMOVED]


def generate(model: Any, ids: torch.Tensor, **words: Any) -> list[list[int]]:
    found: list[list[int]] = model.generate(
        ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None, **words
    ).tolist()
    return found


@pytest.mark.parametrize("family", small.FAMILIES)
def test_tokens_are_the_same_with_and_without_a_cache(family: str, tmp_path: Path) -> None:
    """The prompt is longer than the sliding windows of mistral and qwen2."""
    made = small.make(tmp_path, family)
    model, ids = fxfuse.load_pretrained(tmp_path), small.ids()
    expected = generate(made.whole, ids, use_cache=False)
    assert generate(model, ids, use_cache=False) == expected
    assert generate(model, ids) == expected
    assert generate(model, ids, cache_implementation="static") == expected
    cache = DynamicCache(config=model.config)
    assert generate(model, ids, past_key_values=cache) == expected
    assert len(cache) == len(ATTENTIONS)
    assert all(layer.keys is not None for layer in cache.layers)


def test_a_static_cache_made_by_hand(tmp_path: Path) -> None:
    small.make(tmp_path, "qwen2")
    model, ids = fxfuse.load_pretrained(tmp_path), small.ids()
    cache = StaticCache(config=model.config, max_cache_len=32)
    assert cache.is_sliding == [layer >= 3 for layer in ATTENTIONS]
    assert generate(model, ids, past_key_values=cache) == generate(model, ids, use_cache=False)


@pytest.mark.parametrize("gone", [(0, 1, 2), (3, 4, 5), (0, 5), (0, 1, 2, 3, 4, 5)])
def test_any_attention_may_be_absent(gone: tuple[int, ...], tmp_path: Path) -> None:
    """Also the first, from which a cache has its length; all full ones (0-2), all sliding ones (3-5)."""
    made = small.make(tmp_path, "qwen2", removed=gone)
    model, ids = fxfuse.load_pretrained(tmp_path), small.ids()
    assert generate(model, ids) == generate(made.whole, ids, use_cache=False)


def test_padded_batches_and_beams(tmp_path: Path) -> None:
    made = small.make(tmp_path, removed=(0, 2, 3))
    model, ids = fxfuse.load_pretrained(tmp_path), small.ids(2, 9)
    ids[0, :4] = 0
    words = {"attention_mask": (ids != 0).long(), "num_beams": 3}
    assert generate(model, ids, **words) == generate(made.whole, ids, **words)


def test_steps_by_hand_give_the_logits_of_the_whole(tmp_path: Path) -> None:
    made = small.make(tmp_path, removed=(0, 1))
    model, ids = fxfuse.load_pretrained(tmp_path), small.ids()
    with torch.no_grad():
        first = model(input_ids=ids[:, :-3], use_cache=True)
        rest = model(input_ids=ids[:, -3:], past_key_values=first.past_key_values, use_cache=True)
    assert len(first.past_key_values) == small.LAYERS - 2
    torch.testing.assert_close(rest.logits, made.logits(ids)[:, -3:], rtol=1e-4, atol=1e-4)


def test_key_value_heads_of_layers_reach_the_cache(tmp_path: Path) -> None:
    """Layers with heads of their own, as AnyModel and nemotron-nas have them."""
    made = small.make(tmp_path, num_key_value_heads=4)
    narrow = small.make(tmp_path / "narrow", num_key_value_heads=2)
    weights, taken = (load_file(each.folder / "model.safetensors") for each in (made, narrow))
    weights |= {name: value for name, value in taken.items() if name.startswith("model.layers.3.self_attn.")}
    save_file(weights, tmp_path / "model.safetensors")
    said = made.config()["per_layer_config"] | {"3": {"num_key_value_heads": 2}}
    made.configure(per_layer_config=said)
    model, ids = fxfuse.load_pretrained(tmp_path), small.ids()
    cache = DynamicCache(config=model.config)
    assert generate(model, ids, past_key_values=cache) == generate(model, ids, use_cache=False)
    assert [layer.keys.shape[1] for layer in cache.layers] == [4, 2, 4]
    heads = [each.num_key_value_heads for each in model.config.get_text_config(decoder=True).per_layer_config]
    assert heads == [4, 2, 4]


def test_the_generation_config_of_the_folder_is_used(tmp_path: Path) -> None:
    small.make(tmp_path)
    GenerationConfig(max_new_tokens=3, eos_token_id=[5, 6], pad_token_id=0).save_pretrained(tmp_path)
    model = fxfuse.load_pretrained(tmp_path)
    assert model.generation_config.eos_token_id == [5, 6]
    assert model.generation_config.max_new_tokens == 3


def test_a_copied_or_pickled_model_generates_the_same(tmp_path: Path) -> None:
    small.make(tmp_path)
    model, ids = fxfuse.load_pretrained(tmp_path), small.ids()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert isinstance(other.config, type(model.config).__mro__[1])
        assert len(DynamicCache(config=other.config).layers) == len(ATTENTIONS)
        assert generate(other, ids) == generate(model, ids)
