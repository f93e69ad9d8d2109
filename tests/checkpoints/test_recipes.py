"""Layout and recipes: what every tensor of the fused checkpoint is, put together by hand beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fxfuse.checkpoints.grouping import choose_groups
from fxfuse.checkpoints.layout import lay_out
from fxfuse.checkpoints.opening import open_checkpoint
from fxfuse.checkpoints.recipes import output_tensors
from fxfuse.checkpoints.records import Checkpoint, Layout
from fxfuse.errors import InputError
from tests.checkpoints import llama
from tests.checkpoints.hand import draw
from tests.loading import small

NORM = "post_attention_layernorm.weight"


def fused(folder: Path, dialect: str | None = None, groups: str | None = None) -> tuple[Checkpoint, Layout]:
    found = open_checkpoint(folder)
    return found, lay_out(found, choose_groups(found, groups, auto=groups is None), dialect)


def same_gain(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return stored | {
        f"model.layers.{layer}.{NORM}": stored[f"model.layers.1.{NORM}"] for layer in llama.REMOVED
    }


def stacked(stored: dict[str, torch.Tensor], name: str, axis: int, layers: Any = (1, 2, 3)) -> torch.Tensor:
    return torch.cat([stored[f"model.layers.{layer}.mlp.{name}"] for layer in layers], axis)


# Layers


def test_a_group_is_one_layer(tmp_path: Path) -> None:
    _, layout = fused(llama.write(tmp_path))
    assert [layer.sources for layer in layout.layers] == [(0,), (1, 2, 3), (4,)]
    assert [layer.number for layer in layout.layers] == [0, 1, 2]
    assert [layer.attention for layer in layout.layers] == [True, True, True]
    assert [layer.intermediate_size for layer in layout.layers] == [32, 96, 32]
    assert layout.groups == [(1, 2, 3)]


def test_a_part_of_a_run(tmp_path: Path) -> None:
    _, layout = fused(llama.write(tmp_path), groups="2-3")
    assert [layer.sources for layer in layout.layers] == [(0,), (1,), (2, 3), (4,)]
    assert [layer.attention for layer in layout.layers] == [True, True, False, True]


def test_layers_that_hold_nothing_are_left_out(tmp_path: Path) -> None:
    stored, said = llama.tensors((2, 3), (2, 4)), llama.skips((2, 3), (2, 4))
    found, layout = fused(llama.write(tmp_path, stored, per_layer_config=said))
    assert [layer.sources for layer in layout.layers] == [(0,), (1, 3), (4,)]
    assert [layer.ffn for layer in layout.layers] == [True, True, False]
    assert not any("layers.2.mlp" in each.name for each in output_tensors(found, layout))


def test_dialects_by_default(tmp_path: Path) -> None:
    assert fused(llama.write(tmp_path / "a"))[1].dialect == "per_layer_config"
    dropped = llama.write(tmp_path / "b", per_layer_config=None, drop_attn_list=[2, 3])
    assert fused(dropped)[1].dialect == "per_layer_config"


def test_no_such_dialect(tmp_path: Path) -> None:
    told = "There is no dialect 'gguf': choose from nemotron-nas, per_layer_config, anymodel."
    with pytest.raises(InputError, match=re.escape(told)):
        fused(llama.write(tmp_path), "gguf")


# Tensors


def test_gains_are_folded(tmp_path: Path) -> None:
    """Each W_i diag(g_i) below the next in float64, rounded once; the norm is ones."""
    stored = llama.tensors()
    made = llama.all_made(*fused(llama.write(tmp_path, stored)))
    for name in ("gate_proj.weight", "up_proj.weight"):
        parts = [
            (
                stored[f"model.layers.{n}.mlp.{name}"].double() * stored[f"model.layers.{n}.{NORM}"].double()
            ).float()
            for n in (1, 2, 3)
        ]
        assert torch.equal(made[f"model.layers.1.mlp.{name}"], torch.cat(parts))
    assert torch.equal(made["model.layers.1.mlp.down_proj.weight"], stacked(stored, "down_proj.weight", 1))
    assert torch.equal(made[f"model.layers.1.{NORM}"], torch.ones(llama.HIDDEN))


def test_a_gain_that_all_share_is_kept(tmp_path: Path) -> None:
    """Then every weight is what it was, bit for bit."""
    stored = same_gain(llama.tensors())
    found, layout = fused(llama.write(tmp_path, stored))
    assert layout.layers[1].keeps_gain
    made = llama.all_made(found, layout)
    for name in ("gate_proj.weight", "up_proj.weight"):
        assert torch.equal(made[f"model.layers.1.mlp.{name}"], stacked(stored, name, 0))
    assert torch.equal(made[f"model.layers.1.{NORM}"], stored[f"model.layers.1.{NORM}"])


def test_gains_of_other_bits_are_not_shared(tmp_path: Path) -> None:
    """-0.0 equals 0.0, and has other bits; a NaN equals nothing, and has the same."""
    gain = torch.zeros(llama.HIDDEN)
    stored = llama.tensors() | {f"model.layers.{n}.{NORM}": gain for n in (1, 2)}
    found, layout = fused(llama.write(tmp_path / "a", stored | {f"model.layers.3.{NORM}": -gain}))
    assert not layout.layers[1].keeps_gain
    strange = {f"model.layers.{n}.{NORM}": gain * float("nan") for n in (1, 2, 3)}
    assert fused(llama.write(tmp_path / "b", stored | strange))[1].layers[1].keeps_gain


def test_gains_of_two_types_are_not_shared(tmp_path: Path) -> None:
    stored = llama.tensors() | {f"model.layers.{n}.{NORM}": torch.ones(llama.HIDDEN) for n in (1, 2)}
    stored[f"model.layers.3.{NORM}"] = torch.ones(llama.HIDDEN, dtype=torch.bfloat16)
    assert not fused(llama.write(tmp_path, stored))[1].layers[1].keeps_gain


def test_everything_else_is_as_it_was(tmp_path: Path) -> None:
    """Layers 0, 1 and 4 are 0, 1 and 2 now, and their attentions their own."""
    stored = llama.tensors()
    made = llama.all_made(*fused(llama.write(tmp_path, stored)))
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(made.pop(name), stored[name])
    for old, new in ((0, 0), (1, 1), (4, 2)):
        for name in [name for name in stored if name.startswith(f"model.layers.{old}.")]:
            if old == 1 and ("mlp" in name or NORM in name):
                continue
            assert torch.equal(made.pop(name.replace(f"layers.{old}.", f"layers.{new}.")), stored[name])
    assert {name.split(".")[2] for name in made} == {"1"}
    assert len(made) == 4


def test_the_order_is_the_models(tmp_path: Path) -> None:
    names = [each.name for each in output_tensors(*fused(llama.write(tmp_path)))]
    assert names[0] == "model.embed_tokens.weight"
    assert names[-2:] == ["model.norm.weight", "lm_head.weight"]
    numbers = [int(name.split(".")[2]) for name in names if name.startswith("model.layers.")]
    assert numbers == sorted(numbers)


def test_biases_are_stacked_and_summed(tmp_path: Path) -> None:
    stored = llama.tensors()
    for layer in range(llama.LAYERS):
        prefix = f"model.layers.{layer}.mlp"
        stored |= {
            f"{prefix}.gate_proj.bias": draw(llama.WIDTH, seed=layer),
            f"{prefix}.up_proj.bias": draw(llama.WIDTH, seed=layer + 10),
            f"{prefix}.down_proj.bias": draw(llama.HIDDEN, seed=layer + 20),
        }
    made = llama.all_made(*fused(llama.write(tmp_path, stored, mlp_bias=True)))
    for name in ("gate_proj.bias", "up_proj.bias"):
        assert torch.equal(made[f"model.layers.1.mlp.{name}"], stacked(stored, name, 0))
    down = sum(stored[f"model.layers.{n}.mlp.down_proj.bias"].double() for n in (1, 2, 3))
    assert torch.equal(made["model.layers.1.mlp.down_proj.bias"], down.float())
    assert torch.equal(made["model.layers.2.mlp.up_proj.bias"], stored["model.layers.4.mlp.up_proj.bias"])


def test_packed_products_stay_packed(tmp_path: Path) -> None:
    """All gates, then all ups."""
    made_by_hand = small.make(tmp_path, "phi3").whole.state_dict()
    made = llama.all_made(*fused(tmp_path, groups="0-2"))
    halves: list[list[torch.Tensor]] = [[], []]
    for layer in (0, 1, 2):
        gain = made_by_hand[f"model.layers.{layer}.{NORM}"].double()
        product = made_by_hand[f"model.layers.{layer}.mlp.gate_up_proj.weight"].double()
        for half, part in zip(halves, (product * gain).float().chunk(2), strict=True):
            half.append(part)
    assert torch.equal(made["model.layers.0.mlp.gate_up_proj.weight"], torch.cat([*halves[0], *halves[1]]))


def test_a_gain_that_is_stored_less_one(tmp_path: Path) -> None:
    """Gemma's norm adds 1: what is folded is 1 + weight, and a unit gain is stored as 0."""
    whole = small.make(tmp_path, "gemma").whole.state_dict()
    made = llama.all_made(*fused(tmp_path, groups="0-2"))
    gates = [
        (
            whole[f"model.layers.{n}.mlp.gate_proj.weight"].double()
            * (1 + whole[f"model.layers.{n}.{NORM}"].double())
        ).float()
        for n in (0, 1, 2)
    ]
    assert torch.equal(made["model.layers.0.mlp.gate_proj.weight"], torch.cat(gates))
    assert not made[f"model.layers.0.{NORM}"].any()


def test_any_model_has_a_file_for_every_half(tmp_path: Path) -> None:
    found, layout = fused(llama.write(tmp_path), "anymodel")
    files = {each.name: each.file for each in output_tensors(found, layout)}
    folder = "subblocks_safetensors"
    assert files["model.embed_tokens.weight"] == f"{folder}/embeddings.safetensors"
    assert files["model.norm.weight"] == files["lm_head.weight"] == f"{folder}/lm_head.safetensors"
    for name, file in files.items():
        if name.startswith("model.layers."):
            half = "attention" if "self_attn" in name or "input_layernorm" in name else "ffn"
            assert file == f"{folder}/block_{name.split('.')[2]}_{half}.safetensors"
