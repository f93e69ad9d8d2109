"""Checkpoints of every family with attention missing: loaded, they compute what the whole model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import fxfuse
from tests.loading import small

DTYPES = [torch.float32, torch.bfloat16]


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", small.FAMILIES)
def test_logits_are_those_of_the_whole_model(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    made = small.make(tmp_path, family, dtype)
    model = fxfuse.load_pretrained(tmp_path)
    assert isinstance(model, type(made.whole))
    assert type(model).__name__ == type(made.whole).__name__
    assert model.dtype == dtype
    assert not model.training
    ids = small.ids()
    torch.testing.assert_close(logits(model, ids), made.logits(ids), rtol=0, atol=0)
    stored = made.whole.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, stored[name], rtol=0, atol=0)
    for number in small.REMOVED:
        layer = model.model.layers[number]
        assert layer.self_attn is None
        assert layer.input_layernorm is None


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_each_layer_has_its_own_width(family: str, tmp_path: Path) -> None:
    made = small.make(tmp_path, family, widths={1: 64, 3: 128, 5: 32})
    model = fxfuse.load_pretrained(tmp_path)
    widths = [layer.mlp.down_proj.in_features for layer in model.model.layers]
    assert widths == [256, 64, 256, 128, 256, 32]
    torch.testing.assert_close(logits(model, small.ids()), made.logits(small.ids()), rtol=1e-5, atol=1e-5)


def test_layers_without_an_ffn_and_without_anything(tmp_path: Path) -> None:
    made = small.make(tmp_path, "phi3", removed=(1, 2), without_ffn=(2, 3))
    model = fxfuse.load_pretrained(tmp_path)
    assert not list(model.model.layers[3].mlp.parameters())
    assert model.model.layers[2].mlp is None
    assert not list(model.model.layers[2].parameters())
    torch.testing.assert_close(logits(model, small.ids()), made.logits(small.ids()), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gemma", "llama"])
def test_tied_embeddings_stay_tied(family: str, tmp_path: Path) -> None:
    made = small.make(tmp_path, family, tie_word_embeddings=True)
    model = fxfuse.load_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(logits(model, small.ids()), made.logits(small.ids()), rtol=0, atol=0)


def test_scaled_rotary_embeddings_are_computed(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    made = small.make(tmp_path, "llama", rope_parameters=scaling)
    ids = small.ids(1, 60)
    torch.testing.assert_close(
        logits(fxfuse.load_pretrained(tmp_path), ids), made.logits(ids), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    "asked, expected", [("bfloat16", torch.bfloat16), (torch.float16, torch.float16), ("auto", torch.float32)]
)
def test_weights_are_loaded_in_the_type_asked_for(
    asked: torch.dtype | str, expected: torch.dtype, tmp_path: Path
) -> None:
    made = small.make(tmp_path)
    model = fxfuse.load_pretrained(tmp_path, dtype=asked)
    assert {value.dtype for value in model.state_dict().values()} == {expected}
    assert model.config.dtype == expected
    whole = small.cast(made.whole, expected)
    torch.testing.assert_close(logits(model, small.ids()), logits(whole, small.ids()), rtol=0, atol=0)


def test_the_type_is_that_of_the_weights_where_the_config_names_none(tmp_path: Path) -> None:
    made = small.make(tmp_path, dtype=torch.bfloat16)
    made.configure(dtype=None, torch_dtype=None)
    assert fxfuse.load_pretrained(tmp_path).dtype == torch.bfloat16


def test_what_transformers_builds_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = small.make(tmp_path, removed=())
    asked: list[Any] = []
    original = transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(folder: Path, **words: Any) -> Any:
        asked.append(words)
        return original(folder, **words)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    model = fxfuse.load_pretrained(tmp_path, dtype="float32", device_map="cpu")
    spread = {"model": "cpu", "lm_head": "cpu"}
    fxfuse.load_pretrained(tmp_path, device_map=spread)
    assert asked == [{"dtype": torch.float32}, {"dtype": torch.float32, "device_map": spread}]
    torch.testing.assert_close(logits(model, small.ids()), made.logits(small.ids()), rtol=0, atol=0)
    small.make(tmp_path)
    fxfuse.load_pretrained(tmp_path)
    assert len(asked) == 2


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    """From any dialect, save_pretrained writes per_layer_config."""
    made = small.make(tmp_path / "first", widths={1: 64})
    first = fxfuse.load_pretrained(tmp_path / "first")
    first.save_pretrained(tmp_path / "second")
    again = fxfuse.load_pretrained(tmp_path / "second")
    said = small.Small(tmp_path / "second", None).config()
    assert said["architectures"] == ["LlamaForCausalLM"]
    assert said["intermediate_size"] == small.WIDTH
    assert said["per_layer_config"] == made.config()["per_layer_config"]
    torch.testing.assert_close(logits(again, small.ids()), logits(first, small.ids()), rtol=0, atol=0)


def test_the_kind_of_attention_can_be_changed(tmp_path: Path) -> None:
    small.make(tmp_path, widths={0: 64})
    model = fxfuse.load_pretrained(tmp_path)
    attentions = [layer.self_attn for layer in model.model.layers if layer.self_attn is not None]
    assert all(each.config is model.config for each in attentions)
    before = logits(model, small.ids())
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(input_ids=small.ids(), output_attentions=True, output_hidden_states=True, use_cache=False)
    assert len(out.attentions) == small.LAYERS - len(small.REMOVED)
    assert len(out.hidden_states) == small.LAYERS + 1
    torch.testing.assert_close(out.logits, before, rtol=1e-4, atol=1e-4)
