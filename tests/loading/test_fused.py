"""Checkpoint in, fused checkpoint out, loaded: logits are those of the parallel form written by hand.

x0 = the stream after the attention of the group's first layer
x  = x0 + m sum_i ffn_i(norm_i(x0))          FFN Fusion, arXiv 2503.18908, section 3
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import fxfuse
from fxfuse.checkpoints.api import fuse_checkpoint
from tests.loading import small
from tests.loading.test_caches import generate
from tests.loading.test_families import DTYPES, logits
from tests.parallel import HandNorm

RUNS = [(0, 1, 2), (3, 4), (5,)]


class Parallel(nn.Module):
    """The layers of a group: the attention of the first, then all FFNs at once."""

    def __init__(self, layers: list[Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.multiplier = getattr(layers[0], "residual_multiplier", 1.0)

    def forward(self, hidden_states: Tensor, **words: Any) -> Tensor:
        first, x = self.layers[0], hidden_states
        if first.self_attn is not None:
            x = x + self.multiplier * first.self_attn(first.input_layernorm(x), **words)[0]
        total = torch.zeros_like(x)
        for layer in self.layers:
            total = total + layer.mlp(layer.post_attention_layernorm(x))
        return x + self.multiplier * total


def parallel(model: Any, runs: list[tuple[int, ...]] = RUNS) -> Any:
    """A copy of an unfused model whose runs are computed at once; layer_types are those of first layers."""
    made = copy.deepcopy(model)
    made.model.layers = nn.ModuleList(Parallel([made.model.layers[n] for n in run]) for run in runs)
    made.config.per_layer_config = None
    made.config.num_hidden_layers = len(runs)
    if hasattr(made.config, "layer_types"):
        made.config.layer_types = [made.config.layer_types[run[0]] for run in runs]
    return made


def exact(model: Any) -> Any:
    """In float64, norms too, which transformers computes in float32."""
    made = copy.deepcopy(model)
    for path, module in list(made.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            owner, _, leaf = path.rpartition(".")
            setattr(made.get_submodule(owner), leaf, HandNorm(module))
    return made.double()


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", small.FAMILIES)
def test_fused_logits_are_those_of_the_parallel_form(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Held against float64: no more than twice the rounding of the parallel form in the type itself."""
    small.make(tmp_path / "in", family, dtype)
    fuse_checkpoint(tmp_path / "in", tmp_path / "out", auto=True)
    unfused, fused = (fxfuse.load_pretrained(tmp_path / name) for name in ("in", "out"))
    widths = [layer.mlp.down_proj.in_features for layer in fused.model.layers]
    assert widths == [len(run) * small.WIDTH for run in RUNS]
    assert type(fused).__name__ == type(unfused).__name__
    ids = small.ids()
    by_hand = parallel(unfused)
    reference = logits(exact(by_hand), ids)
    floor = torch.finfo(dtype).eps
    assert error(logits(fused, ids), reference) <= 2 * error(logits(by_hand, ids), reference) + floor
    assert error(logits(unfused, ids), reference) > 0.02
    expected = generate(fused, ids, use_cache=False)
    assert generate(fused, ids) == expected
    assert generate(fused, ids, cache_implementation="static") == expected


def test_fewer_layers_and_still_fewer_caches(tmp_path: Path) -> None:
    """A run that follows a layer without an FFN begins without attention, and stays so."""
    small.make(tmp_path / "in", "qwen2", removed=(1, 2, 4, 5), without_ffn=(0,))
    fuse_checkpoint(tmp_path / "in", tmp_path / "out", auto=True)
    fused = fxfuse.load_pretrained(tmp_path / "out")
    assert [layer.self_attn is not None for layer in fused.model.layers] == [True, False, True]
    assert len(DynamicCache(config=fused.config).layers) == 2
    ids = small.ids()
    by_hand = parallel(fxfuse.load_pretrained(tmp_path / "in"), [(1, 2), (3, 4, 5)])
    by_hand.model.layers.insert(0, fxfuse.load_pretrained(tmp_path / "in").model.layers[0])
    by_hand.config.num_hidden_layers = 3
    by_hand.config.layer_types = ["full_attention", "full_attention", "sliding_attention"]
    torch.testing.assert_close(logits(fused, ids), logits(by_hand, ids), rtol=1e-4, atol=1e-4)
    assert generate(fused, ids) == generate(fused, ids, use_cache=False)


@pytest.mark.parametrize("dialect", ["nemotron-nas", "per_layer_config", "anymodel"])
def test_dialects_hold_the_same_model(dialect: str, tmp_path: Path) -> None:
    small.make(tmp_path / "in", attention_bias=False, mlp_bias=False)
    fuse_checkpoint(tmp_path / "in", tmp_path / "out", auto=True, dialect=dialect)
    fused = fxfuse.load_pretrained(tmp_path / "out")
    by_hand = parallel(fxfuse.load_pretrained(tmp_path / "in"))
    torch.testing.assert_close(logits(fused, small.ids()), logits(by_hand, small.ids()), rtol=1e-4, atol=1e-4)
    assert generate(fused, small.ids()) == generate(by_hand, small.ids(), use_cache=False)


@pytest.mark.parametrize("family", ["phi3", "granite"])
def test_families_written_as_llama(family: str, tmp_path: Path) -> None:
    """Packed products are taken apart, Granite's multipliers are in the weights."""
    small.make(tmp_path / "in", family)
    fuse_checkpoint(tmp_path / "in", tmp_path / "out", auto=True, dialect="nemotron-nas")
    fused = fxfuse.load_pretrained(tmp_path / "out")
    assert type(fused).__name__ == "LlamaForCausalLM"
    by_hand = parallel(fxfuse.load_pretrained(tmp_path / "in"))
    torch.testing.assert_close(logits(fused, small.ids()), logits(by_hand, small.ids()), rtol=1e-3, atol=1e-3)
