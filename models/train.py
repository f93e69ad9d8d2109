"""Train a demo model: dense at first, then six attentions removed by measured importance, then healed.

    python -m models.train                  everything, into models/demo-dense and models/demo
    python -m models.train --resume         the same, but keep a dense model that is already there
    python -m models.train --name demo-gelu     another style: LayerNorm, ungated GELU, biases

Matrices inside the layers are trained with Muon, everything else with AdamW, in bfloat16 autocast. The rate
rises over the first steps, stays, and falls linearly to zero. Healing goes on with the language-modelling
loss plus the KL divergence from the dense model.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fxfuse.distillation.memory import keep_freed_memory
from models import corpus
from models.card import write_card
from models.checkpoint import load, store, write_whole
from models.decoder import Decoder, DecoderConfig, LayerConfig
from models.evaluate import nats_per_byte, predictor
from models.fitting import Recipe, fit, initialise
from models.surgery import measure_importance, remove_attention

__all__ = ["STYLES", "main"]

# What is trained, by the name of its folder.
STYLES: dict[str, dict[str, Any]] = {
    "demo": {"norm": "rms", "activation": "silu", "gated": True, "bias": False},
    "demo-gelu": {"norm": "layer", "activation": "gelu", "gated": False, "bias": True},
}
# An FFN without a gate has two matrices, not three: at this width it has as many weights.
WIDTHS = {"demo": 512, "demo-gelu": 768}


def evaluate(model: Decoder, max_bytes: int) -> dict[str, Any]:
    """Return the held-out loss as JSON values."""
    found = asdict(nats_per_byte(predictor(model), corpus.held_out(max_bytes)))
    return {name: value for name, value in found.items() if name != "losses"}


def train_dense(config: DecoderConfig, recipe: Recipe, folder: Path) -> None:
    """Train a decoder with every attention in place and store it."""
    print(f"dense: {recipe.steps} steps", flush=True)
    model = initialise(Decoder(config), recipe.seed)
    fit(model, corpus.training(), recipe)
    store(model, folder)


def remove_and_heal(dense: Decoder, size: int, recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Take `size` consecutive attentions out of `dense`, heal and store the result, return the figures."""
    # Chosen on text the model has seen, so that the held-out files stay out of every decision.
    importance = measure_importance(dense, corpus.training()[: options.importance_bytes], size)
    window = importance.best_window(size)
    model = remove_attention(dense, window)
    removed = evaluate(model, options.eval_bytes)
    print(f"removed attention {window.start}..{window.stop - 1}: {removed['mean']:.4f}; healing", flush=True)
    fit(model, corpus.training(), recipe, teacher=dense)
    store(model, options.out / options.name)
    return {
        "removed_layers": list(window),
        "importance": asdict(importance),
        "dense": evaluate(dense, options.eval_bytes),
        "removed": removed,
        "healed": evaluate(load(options.out / options.name), options.eval_bytes),
    }


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description="Train the demo model.")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="where the two folders are written"
    )
    parser.add_argument("--name", choices=STYLES, default="demo", help="which model; NAME-dense is the other")
    parser.add_argument("--steps", type=int, default=2200, help="steps of the dense model")
    parser.add_argument("--heal-steps", type=int, default=900, help="steps after the attentions were removed")
    parser.add_argument("--batch", type=int, default=8, help="windows in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--intermediate-size", type=int, help="by default 512, 768 without a gate")
    parser.add_argument("--remove", type=int, default=6, help="consecutive attentions to remove")
    parser.add_argument(
        "--importance-bytes", type=int, default=32_768, help="training text to choose them on"
    )
    parser.add_argument("--eval-bytes", type=int, default=204_800, help="held-out text to report on")
    parser.add_argument("--resume", action="store_true", help="keep the dense model that is already there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, remove, heal, and write both models with their figures and model card."""
    options = parse_options(arguments)
    keep_freed_memory()
    width = options.intermediate_size or WIDTHS[options.name]
    layers = (LayerConfig(intermediate_size=width),) * options.layers
    config = DecoderConfig(hidden_size=options.hidden_size, layers=layers, **STYLES[options.name])
    recipe = Recipe(options.steps, batch=options.batch, seed=options.seed)
    healing = replace(recipe, steps=options.heal_steps, seed=options.seed + 1, cooldown=0.8)
    begun = time.monotonic()
    dense = options.out / f"{options.name}-dense"
    if not (options.resume and (dense / "model.safetensors").exists()):
        train_dense(config, recipe, dense)
    figures = remove_and_heal(load(dense), options.remove, healing, options)
    figures |= {
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "recipe": asdict(recipe),
        "healing": asdict(healing),
    }
    write_whole(options.out / options.name / "training.json", (json.dumps(figures, indent=1) + "\n").encode())
    write_card(options.out / options.name)
    print(f"held-out nats/byte: dense {figures['dense']['mean']:.4f}, healed {figures['healed']['mean']:.4f}")


if __name__ == "__main__":
    main()
