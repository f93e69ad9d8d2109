"""The dialects that others write, made by hand from their published fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fxfuse.checkpoints.api import fuse_checkpoint
from fxfuse.checkpoints.grouping import choose_groups
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.records import Checkpoint
from fxfuse.checkpoints.verifying import verify_checkpoint
from fxfuse.errors import InputError
from tests.checkpoints import llama

WIDE = 256  # the narrowest that an ffn_mult can give
FFN_MULT = 1.5 * WIDE / llama.HIDDEN


def wide_tensors() -> dict[str, Any]:
    found = llama.tensors()
    for layer in range(llama.LAYERS):
        found |= llama.ffn(layer, WIDE)
    return found


def nas_block(layer: int, **other: Any) -> dict[str, Any]:
    """As in the configs of Llama-3_1-Nemotron."""
    gone = layer in llama.REMOVED
    return {
        "attention": {
            "n_heads_in_group": None if gone else 2, "no_op": gone, "num_sink_tokens": None,
            "replace_with_linear": False, "sparsify": None, "unshifted_sink": False,
            "use_prefill_window_in_sink_attention": False, "window_length": None,
            **other.get("attention", {}),
        },
        "ffn": {
            "ffn_mult": FFN_MULT, "no_op": False, "replace_with_linear": False, "sparsify": None,
            **other.get("ffn", {}),
        },
    }  # fmt: skip


def nas(folder: Path, **other: Any) -> Path:
    """`other`: what layer 1 says otherwise."""
    blocks = [nas_block(layer, **(other if layer == 1 else {})) for layer in range(llama.LAYERS)]
    return llama.write(
        folder, wide_tensors(), per_layer_config=None, model_type="nemotron-nas",
        architectures=["DeciLMForCausalLM"], intermediate_size=None, num_key_value_heads=None,
        block_configs=blocks,
    )  # fmt: skip


def any_block(layer: int, **other: Any) -> dict[str, Any]:
    gone = layer in llama.REMOVED
    return {
        "attention": {
            "no_op": gone,
            "num_key_value_heads": None if gone else 2,
            **other.get("attention", {}),
        },
        "ffn": {"no_op": False, "intermediate_size": llama.WIDTH, **other.get("ffn", {})},
        "parallel_blocks": other.get("parallel_blocks"),
    }


def any_model(folder: Path, **other: Any) -> Path:
    blocks = [any_block(layer, **(other if layer == 1 else {})) for layer in range(llama.LAYERS)]
    return llama.write(folder, per_layer_config=None, block_configs=blocks)


def parts(layer: int, *more: dict[str, Any]) -> dict[str, Any]:
    """A block_config as later versions of Model-Optimizer write it."""
    attention = {
        "kind": "attention",
        "name": "attention",
        "no_op": False,
        "num_kv_heads": 2,
        "num_query_heads": 4,
    }
    if layer == 2:
        attention = {"kind": "attention", "name": "attention", "no_op": True}
    ffn = {"kind": "ffn", "name": "ffn", "no_op": False, "intermediate_size": llama.WIDTH}
    kept = [ffn] if layer == 3 else [attention, ffn]
    return {"subblock_configs": [*kept, *more]}


def fused_as_hoped(found: Checkpoint) -> None:
    """Layers 1, 2 and 3 are the one run, with no further hint."""
    assert [layer.number for layer in found.layers if not layer.attention] == list(llama.REMOVED)
    assert choose_groups(found, auto=True) == [(1, 2, 3)]


def refused(folder: Path, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        open_checkpoint(folder)


# What others write


def test_nemotron_nas(tmp_path: Path) -> None:
    found = open_checkpoint(nas(tmp_path))
    assert found.dialect == "nemotron-nas"
    assert {layer.intermediate_size for layer in found.layers} == {WIDE}
    fused_as_hoped(found)


def test_any_model(tmp_path: Path) -> None:
    found = open_checkpoint(any_model(tmp_path))
    assert found.dialect == "anymodel"
    fused_as_hoped(found)


def test_any_model_of_later_versions(tmp_path: Path) -> None:
    """Attention is a no_op in layer 2, and not named at all in layer 3."""
    blocks = [parts(layer) for layer in range(llama.LAYERS)]
    fused_as_hoped(open_checkpoint(llama.write(tmp_path, per_layer_config=None, block_configs=blocks)))


@pytest.mark.parametrize("keys", [("2", "3"), ("02", "03")])
def test_per_layer_config(tmp_path: Path, keys: tuple[str, str]) -> None:
    said = {key: {"skip": ["attention"]} for key in keys}
    found = open_checkpoint(llama.write(tmp_path, per_layer_config=said))
    assert found.dialect == "per_layer_config"
    fused_as_hoped(found)


@pytest.mark.parametrize("dropped", [[3, 2], [False, False, True, True, False]])
def test_llm_drop(tmp_path: Path, dropped: list[Any]) -> None:
    """Its tensors are usually all there, and its code passes over some."""
    stored = llama.tensors(removed=())
    found = open_checkpoint(
        llama.write(tmp_path, stored, per_layer_config=None, drop_attn_list=dropped, drop_mlp_list=[])
    )
    assert found.dialect == "llm-drop"
    fused_as_hoped(found)


def test_llm_drop_of_whole_layers(tmp_path: Path) -> None:
    """A layer that holds nothing is no obstacle to a run."""
    lists = {"drop_attn_list": [2, 3], "drop_mlp_list": [2]}
    found = open_checkpoint(llama.write(tmp_path, per_layer_config=None, **lists))
    assert choose_groups(found, auto=True) == [(1, 3)]


def test_plain(tmp_path: Path) -> None:
    found = open_checkpoint(llama.write(tmp_path, llama.tensors(removed=()), per_layer_config=None))
    assert found.dialect == "plain"
    assert all(layer.attention and layer.ffn for layer in found.layers)


def test_key_value_heads_of_a_layer(tmp_path: Path) -> None:
    stored = wide_tensors() | llama.attention(1, keys=1)
    folder = nas(tmp_path, attention={"n_heads_in_group": 4})
    llama.folder_of(folder, stored)
    assert open_checkpoint(folder).layers[1].own == {"num_key_value_heads": 1}


def test_two_dialects_that_agree(tmp_path: Path) -> None:
    stored = llama.tensors(removed=())
    fused_as_hoped(open_checkpoint(llama.write(tmp_path, stored, drop_attn_list=[2, 3])))


@pytest.mark.parametrize(
    ("make", "dialect"),
    [
        (nas, "nemotron-nas"),
        (any_model, "anymodel"),
        (llama.write, "per_layer_config"),
        (
            lambda folder: llama.write(folder, per_layer_config=None, drop_attn_list=[2, 3]),
            "per_layer_config",
        ),
    ],
    ids=["nemotron-nas", "anymodel", "per_layer_config", "llm-drop"],
)
def test_fused_with_no_further_hint(make: Callable[[Path], Path], dialect: str, tmp_path: Path) -> None:
    """In its own dialect where that has widths, whole, and read again as it was laid out."""
    report = fuse_checkpoint(make(tmp_path / "in"), tmp_path / "out", auto=True)
    assert (report.groups, report.dialect) == ([(1, 2, 3)], dialect)
    found = open_checkpoint(tmp_path / "out")
    assert [layer.attention for layer in found.layers] == [True, True, True]
    width = WIDE if dialect == "nemotron-nas" else llama.WIDTH
    assert [layer.intermediate_size for layer in found.layers] == [width, 3 * width, width]
    assert verify_checkpoint(tmp_path / "out").loads


# What is not understood


def test_two_dialects_that_do_not_agree(tmp_path: Path) -> None:
    refused(
        llama.write(tmp_path, drop_attn_list=[3]),
        "says of layer 2 one thing in its per_layer_config and another in its drop_attn_list: take one",
    )


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"attention": {"replace_with_linear": True}}, "layer 1 in"),
        ({"attention": {"replace_with_linear": True}}, "replaces a block by a linear product"),
        ({"attention": {"window_length": 64}}, "attends to a window (window_length)"),
        ({"attention": {"num_sink_tokens": 4}}, "has sink tokens (num_sink_tokens)"),
        (
            {"attention": {"n_heads_in_group": 3}},
            "has n_heads_in_group 3, and not a divisor of 4: correct it.",
        ),
        ({"attention": {"n_heads_in_group": None}}, "has attention and no n_heads_in_group"),
        ({"ffn": {"ffn_mult": None}}, "gives its FFN neither an ffn_mult nor an intermediate_size"),
        ({"ffn": {"ffn_mult": True}}, "gives its FFN neither an ffn_mult nor an intermediate_size"),
        ({"ffn": {"replace_with_linear": True}}, "replaces a block by a linear product"),
    ],
)
def test_a_block_of_nemotron_nas(tmp_path: Path, other: dict[str, Any], told: str) -> None:
    refused(nas(tmp_path, **other), told)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"ffn": {"moe": {"num_local_experts": 8}}}, "has experts, which cannot be fused"),
        ({"attention": {"mamba": {"state_dim": 8}}}, "has a state space in place of attention"),
        ({"attention": {"llama4": {"use_rope": False}}}, "has attention of Llama 4"),
        ({"parallel_blocks": [{}]}, "has parallel blocks, which are not read"),
        (
            {"attention": {"num_key_value_heads": 3}},
            "has num_key_value_heads 3, and not a divisor of 4: correct it.",
        ),
        ({"attention": {"num_query_heads": 2}}, "has 2 query heads of its own, which are not read"),
    ],
)
def test_a_block_of_any_model(tmp_path: Path, other: dict[str, Any], told: str) -> None:
    refused(any_model(tmp_path, **other), told)


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        ([{}] * llama.LAYERS, "layer 0 in"),
        ([{}] * llama.LAYERS, "has no JSON objects attention and ffn: give both"),
        ([3] * llama.LAYERS, "has no JSON objects attention and ffn: give both"),
        ([{"subblock_configs": [{}]}] * llama.LAYERS, "has a subblock of kind None, which is not read"),
        ([{"subblock_configs": [3]}] * llama.LAYERS, "has a subblock of kind None, which is not read"),
        ([parts(0, {"kind": "conv"})] * llama.LAYERS, "has a subblock of kind 'conv', which is not read"),
        (
            [parts(0, {"kind": "mla", "no_op": False})] * llama.LAYERS,
            "has latent attention, which is not read",
        ),
        ([any_block(0)] * 3, "has 3 block_configs and 5 layers: correct one of them."),
        ({"0": any_block(0)}, "has no block_configs, one for each of its 5 layers: correct it."),
    ],
)
def test_block_configs_that_are_none(tmp_path: Path, blocks: Any, told: str) -> None:
    refused(llama.write(tmp_path, per_layer_config=None, block_configs=blocks), told)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"5": {}}, "has an entry for '5': layers have the numbers 0 to 4."),
        ({"one": {}}, "has an entry for 'one': layers have the numbers 0 to 4."),
        ({"1": 3}, "The per_layer_config of layer 1 in"),
        ({"1": {"skip": ["router"]}}, "skips 'router': known are attention and mlp."),
        ({"1": {"intermediate_size": "wide"}}, "gives intermediate_size as 'wide'"),
        ([{"skip": []}], "is no JSON object: give an entry by number of layer."),
    ],
)
def test_a_per_layer_config_that_is_none(tmp_path: Path, said: Any, told: str) -> None:
    refused(llama.write(tmp_path, per_layer_config=said), told)


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        ({"drop_attn_list": [5]}, "drop_attn_list in"),
        ({"drop_attn_list": [-1]}, "give numbers of layers from 0 to 4, or one truth value for each layer."),
        ({"drop_attn_list": [True, False]}, "has 2 truth values for 5 layers: correct it."),
        ({"drop_mlp_list": "all"}, "drop_mlp_list in"),
    ],
)
def test_lists_of_llm_drop_that_are_none(tmp_path: Path, lists: dict[str, Any], told: str) -> None:
    refused(llama.write(tmp_path, per_layer_config=None, **lists), told)
