"""The reference decoder, its corpus, its training and the trained demo models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import corpus, load_demo
from models.checkpoint import DEMOS, load, store
from models.decoder import Decoder, DecoderConfig, LayerConfig
from models.evaluate import nats_per_byte, predictor
from models.fitting import Recipe
from models.muon import orthogonalise
from models.surgery import remove_attention, without_attention
from models.train import main

FOLDER = Path(__file__).parents[1] / "models"
LAYERS = tuple(LayerConfig(attention=i not in (1, 2), intermediate_size=24 + 8 * i) for i in range(4))
SMALL = ["--layers=8", "--hidden-size=24", "--intermediate-size=16", "--batch=2"]
SMALL += ["--importance-bytes=600", "--eval-bytes=600"]
TINY = DecoderConfig(hidden_size=16, num_heads=2, layers=LAYERS)


def make_tiny(config: DecoderConfig = TINY) -> Decoder:
    torch.manual_seed(0)
    return Decoder(config).eval()


# The decoder


def test_config_round_trip() -> None:
    """from_dict(json(to_dict(c))) = c"""
    assert DecoderConfig.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY


@pytest.mark.parametrize(
    "wrong", [{"hidden_size": 18, "num_heads": 2}, {"norm": "batch"}, {"activation": "sine"}]
)
def test_config_refuses_what_it_cannot_build(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="|".join(wrong)):
        DecoderConfig(**wrong)  # type: ignore[arg-type]


def test_layers_without_attention_have_no_attention_parameters() -> None:
    names = set(make_tiny().state_dict())
    assert "layers.0.self_attn.q_proj.weight" in names
    assert "layers.0.input_layernorm.weight" in names
    assert not [name for name in names if name.startswith(("layers.1.self_attn", "layers.2.input_layernorm"))]
    assert make_tiny().layers[3].mlp.up_proj.weight.shape == (48, 16)
    assert TINY.ffn_chains() == [range(0, 3)]


@pytest.mark.parametrize("style", [{}, {"norm": "layer", "activation": "gelu", "gated": False, "bias": True}])
def test_logits_depend_on_the_past_only(style: dict[str, object]) -> None:
    model = make_tiny(DecoderConfig(hidden_size=16, num_heads=2, layers=LAYERS, **style))  # type: ignore[arg-type]
    ids = torch.randint(256, (2, 9))
    logits = model(ids)
    assert logits.shape == (2, 9, 256)
    assert logits.isfinite().all()
    torch.testing.assert_close(model(ids[:, :5]), logits[:, :5], rtol=1e-4, atol=1e-5)


def test_written_out_attention_is_the_fused_one() -> None:
    """softmax(q k' / sqrt(d), causal) v in training mode = scaled_dot_product_attention in inference mode"""
    model, ids = make_tiny(), torch.randint(256, (2, 9))
    torch.testing.assert_close(model.train()(ids), model.eval()(ids), rtol=1e-4, atol=1e-5)


def test_positions_matter() -> None:
    """A rotary decoder tells "ab" from "ba" at the byte after them."""
    model = make_tiny(DecoderConfig(hidden_size=16, num_heads=2, layers=(LayerConfig(), LayerConfig())))
    ids = torch.tensor([[1, 2, 3], [2, 1, 3]])
    assert not torch.allclose(model(ids)[0, 2], model(ids)[1, 2], atol=1e-6)


def test_decoder_compiles_in_one_graph_and_exports_with_dynamic_shapes() -> None:
    model, ids = make_tiny(), torch.randint(256, (2, 9))
    expected = model(ids)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), expected)
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")},)
    program = torch.export.export(model, (ids,), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(ids[:1, :5]), model(ids[:1, :5]))


# Surgery


def test_removing_attention_is_leaving_it_out() -> None:
    model, ids = make_tiny(DecoderConfig(hidden_size=16, num_heads=2)), torch.randint(256, (2, 9))
    whole = model(ids)
    with without_attention(model, range(3, 9)):
        torch.testing.assert_close(remove_attention(model, range(3, 9)).eval()(ids), model(ids))
    torch.testing.assert_close(model(ids), whole)


# Corpus and evaluation


def test_corpus_sides_are_disjoint_and_stable() -> None:
    paths = corpus.list_files()
    held = [path for path in paths if corpus.is_held_out(path)]
    assert 0.03 < len(held) / len(paths) < 0.12
    assert corpus.is_held_out("typing.py")
    assert not corpus.is_held_out("argparse.py")
    assert not [path for path in paths if "site-packages" in path or "/test" in path]


def test_held_out_slices_are_deterministic() -> None:
    part = corpus.held_out(10_000)
    assert len(part) == 10_000
    assert np.array_equal(part, corpus.held_out(10_000))


def test_uniform_logits_cost_log_256() -> None:
    result = nats_per_byte(
        lambda ids: np.zeros((*ids.shape, 256), np.float32), corpus.held_out(4096), context=64
    )
    assert result.mean == pytest.approx(np.log(256))
    assert result.tokens == 4032
    assert result.standard_error < 1e-9


def test_evaluation_needs_one_window() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        nats_per_byte(lambda ids: np.zeros((*ids.shape, 256), np.float32), corpus.held_out(256)[:256])


# Training


def test_muon_steps_are_near_orthogonal() -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 24, 16)))
    assert values.min() > 0.3
    assert values.max() < 1.5


def test_rates_rise_stay_and_fall() -> None:
    recipe = Recipe(steps=100, warmup=0.1, cooldown=0.5)
    rates = [recipe.rate_at(step) for step in range(100)]
    assert rates[0] < 0.1
    assert rates[9] < rates[30] == rates[45] == 1.0
    assert rates[99] < 0.02


def test_two_steps_of_training_write_models_that_load(tmp_path: Path) -> None:
    main([*SMALL, "--steps=2", "--heal-steps=2", f"--out={tmp_path}"])
    dense, healed = load(tmp_path / "demo-dense"), load(tmp_path / "demo")
    assert not dense.config.ffn_chains()
    assert healed.config.ffn_chains() == [range(0, 7)]
    assert healed(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()
    assert "nats/byte" in (tmp_path / "demo" / "README.md").read_text(encoding="utf-8")


def test_training_of_the_second_style(tmp_path: Path) -> None:
    shape = (
        "--layers 8 --hidden-size 24 --intermediate-size 16 --batch 2 --importance-bytes 600 --eval-bytes 600"
    )
    main(
        [*f"--name demo-gelu {shape} --steps 1 --heal-steps 1".split(), "--out", str(tmp_path)],
    )
    healed = load(tmp_path / "demo-gelu")
    assert healed.config.norm == "layer"
    assert healed.layers[0].mlp.gate_proj is None
    assert healed.layers[0].mlp.up_proj.bias is not None
    assert "LayerNorm" in (tmp_path / "demo-gelu" / "README.md").read_text(encoding="utf-8")


def test_checkpoint_round_trip_rounds_to_float16(tmp_path: Path) -> None:
    model = make_tiny()
    store(model, tmp_path)
    again = load(tmp_path)
    assert again.config == TINY
    assert not list(tmp_path.glob("*.part"))
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight.half().float(), rtol=0, atol=0)


# The demo models


@pytest.mark.parametrize("name", DEMOS)
def test_demo_is_small_and_predicts_held_out_text(name: str) -> None:
    assert (FOLDER / name / "model.safetensors").stat().st_size <= 12_000_000
    assert nats_per_byte(predictor(load_demo(name)), corpus.held_out(20_000)).mean < 1.6


@pytest.mark.parametrize("name", ["demo", "demo-gelu"])
def test_demo_has_a_chain_of_seven_ffns(name: str) -> None:
    chains = load_demo(name).config.ffn_chains()
    assert [len(chain) for chain in chains] == [7]
    assert not load_demo(f"{name}-dense").config.ffn_chains()


def test_second_demo_is_of_another_style() -> None:
    config = load_demo("demo-gelu").config
    assert (config.norm, config.activation, config.gated, config.bias) == ("layer", "gelu", False, True)
