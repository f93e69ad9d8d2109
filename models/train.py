"""Train the demo model: a dense decoder, six consecutive attentions removed by measured importance, then healed.

    python -m models.train                  everything, into models/demo-dense and models/demo
    python -m models.train --resume         the same, but keep a dense model that is already there

Matrices inside the layers are trained with Muon, everything else with AdamW, in bfloat16 autocast. The rate rises over
the first steps, stays, and falls linearly to zero. Healing goes on with the language-modelling loss plus the KL
divergence from the dense model.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models import corpus
from models.card import write_card
from models.checkpoint import load, store, write_whole
from models.decoder import Decoder, DecoderConfig, LayerConfig
from models.evaluate import nats_per_byte, predictor
from models.muon import Muon
from models.surgery import measure_importance, remove_attention

__all__ = ["Recipe", "fit", "main"]

SHARES = 2  # threads, each with its share of every batch


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train; rates are peaks, `warmup` and `cooldown` are shares of the steps."""

    steps: int
    batch: int = 8
    context: int = 256
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    warmup: float = 0.02
    cooldown: float = 0.5
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Return the factor on both rates at this step: up, flat, down."""
        done = (step + 0.5) / self.steps
        return min(1.0, done / self.warmup, (1 - done) / self.cooldown)


def initialise(model: Decoder, seed: int) -> Decoder:
    """Draw small embeddings, and let every layer start as the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)
        elif weight.ndim == 2:
            nn.init.normal_(
                weight, std=0.02 if "layers" not in name else weight.shape[1] ** -0.5, generator=generator
            )
    return model


def make_optimizers(model: Decoder, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Give Muon the matrices inside the layers, in two halves, and AdamW embedding, head, gains and biases."""
    inside = [w for name, w in model.named_parameters() if name.startswith("layers.") and w.ndim == 2]
    tall = [w for w in inside if w.shape[0] > w.shape[1]]
    wide = [w for w in inside if w.shape[0] <= w.shape[1]]
    chosen = {id(w) for w in inside}
    others = [w for w in model.parameters() if id(w) not in chosen]
    adam = torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
    return [Muon(half, lr=recipe.muon_rate) for half in (tall, wide) if half] + [adam]



def draw_batch(data: NDArray[np.uint8], recipe: Recipe, generator: np.random.Generator) -> Tensor:
    """Return `[batch, context + 1]` ids from random places of the training text."""
    starts = generator.integers(0, len(data) - recipe.context, recipe.batch)
    return torch.from_numpy(data[starts[:, None] + np.arange(recipe.context + 1)].astype(np.int64))


def compute_loss(model: Decoder, ids: Tensor, teacher: Decoder | None) -> tuple[Tensor, float]:
    """Return the loss to descend, and its language-modelling part in nats per byte."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids[:, :-1]).float().flatten(0, 1)
        loss = F.cross_entropy(logits, ids[:, 1:].flatten())
        if teacher is None:
            return loss, loss.item()
        with torch.no_grad():
            target = teacher(ids[:, :-1]).float().flatten(0, 1).log_softmax(-1)
    divergence = F.kl_div(logits.log_softmax(-1), target, reduction="batchmean", log_target=True)
    return loss + divergence, loss.item()


def compute_gradients(
    pool: ThreadPoolExecutor, model: Decoder, ids: Tensor, teacher: Decoder | None
) -> float:
    """Leave the batch's mean gradient in the weights and return its loss, one share of the batch to a thread.

    Whole shares need one meeting of the threads a step, where threads inside each product would meet a thousand times
    and wait for the slowest whenever something else wants a core. Fixed shares, summed in order, keep it reproducible.
    """
    weights = list(model.parameters())

    def run(share: Tensor) -> tuple[tuple[Tensor, ...], float]:
        loss, nats = compute_loss(model, share, teacher)
        return torch.autograd.grad(loss * (len(share) / len(ids)), weights), nats * len(share) / len(ids)

    shares = list(pool.map(run, ids.chunk(SHARES)))
    for weight, *parts in zip(weights, *(gradients for gradients, _ in shares), strict=True):
        weight.grad = torch.stack(parts).sum(0)
    return sum(nats for _, nats in shares)


def fit(model: Decoder, data: NDArray[np.uint8], recipe: Recipe, teacher: Decoder | None = None) -> None:
    """Train `model` in place, and say every hundred steps where it stands."""
    generator = np.random.default_rng(recipe.seed)
    optimizers = make_optimizers(model.train(), recipe)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    begun, recent, threads = time.monotonic(), 0.0, torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(SHARES, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for step in range(recipe.steps):
            nats = compute_gradients(pool, model, draw_batch(data, recipe, generator), teacher)
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * recipe.rate_at(step)
            list(pool.map(lambda optimizer: optimizer.step(), optimizers))
            recent = nats if step == 0 else 0.98 * recent + 0.02 * nats
            if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
                report_progress(step + 1, recipe.steps, recent, time.monotonic() - begun)
    torch.set_num_threads(threads)
    model.eval()


def report_progress(done: int, steps: int, loss: float, seconds: float) -> None:
    """Print where a training run stands, and about how long it will still take."""
    left = seconds / done * (steps - done)
    print(f"  step {done}/{steps}  loss {loss:.3f}  {seconds:.0f} s, {left:.0f} s left", flush=True)


def evaluate(model: Decoder, max_bytes: int) -> dict[str, Any]:
    """Return the held-out loss as JSON values."""
    return asdict(nats_per_byte(predictor(model), corpus.held_out(max_bytes)))


def train_dense(config: DecoderConfig, recipe: Recipe, folder: Path) -> None:
    """Train a decoder with every attention in place and store it."""
    print(f"dense: {recipe.steps} steps", flush=True)
    model = initialise(Decoder(config), recipe.seed)
    fit(model, corpus.training(), recipe)
    store(model, folder)


def remove_and_heal(dense: Decoder, size: int, recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Take `size` consecutive attentions out of `dense`, train on, store the result and return the figures."""
    # Chosen on text the model has seen, so that the held-out files stay out of every decision.
    importance = measure_importance(dense, corpus.training()[: options.importance_bytes], size)
    window = importance.best_window(size)
    model = remove_attention(dense, window)
    removed = evaluate(model, options.eval_bytes)
    print(f"removed attention {window.start}..{window.stop - 1}: {removed['mean']:.4f}; healing", flush=True)
    fit(model, corpus.training(), recipe, teacher=dense)
    store(model, options.out / "demo")
    return {
        "removed_layers": list(window),
        "importance": asdict(importance),
        "dense": evaluate(dense, options.eval_bytes),
        "removed": removed,
        "healed": evaluate(load(options.out / "demo"), options.eval_bytes),
    }


def keep_freed_memory() -> None:
    """Tell glibc to hold on to freed memory, where there is glibc.

    A step allocates and frees hundreds of megabytes. Handing them back to the system, and being given them again page
    by page, can take more time than the arithmetic, most of all in a virtual machine.
    """
    if not sys.platform.startswith("linux"):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return
    trim_threshold, top_pad, mmap_threshold, arena_max = -1, -2, -3, -8
    for option, value in (
        (arena_max, 1),
        (mmap_threshold, 32 << 20),
        (trim_threshold, 2**31 - 1),
        (top_pad, 64 << 20),
    ):
        set_option(option, value)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description="Train the demo model.")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="where demo and demo-dense are written"
    )
    parser.add_argument("--steps", type=int, default=2600, help="steps of the dense model")
    parser.add_argument(
        "--heal-steps", type=int, default=1000, help="steps after the attentions were removed"
    )
    parser.add_argument("--batch", type=int, default=8, help="windows in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--intermediate-size", type=int, default=512)
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
    layers = (LayerConfig(intermediate_size=options.intermediate_size),) * options.layers
    config = DecoderConfig(hidden_size=options.hidden_size, layers=layers)
    recipe = Recipe(options.steps, batch=options.batch, seed=options.seed)
    healing = replace(recipe, steps=options.heal_steps, seed=options.seed + 1, cooldown=0.8)
    begun = time.monotonic()
    if not (options.resume and (options.out / "demo-dense" / "model.safetensors").exists()):
        train_dense(config, recipe, options.out / "demo-dense")
    figures = remove_and_heal(load(options.out / "demo-dense"), options.remove, healing, options)
    figures |= {
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "recipe": asdict(recipe),
        "healing": asdict(healing),
    }
    write_whole(options.out / "demo" / "training.json", (json.dumps(figures, indent=1) + "\n").encode())
    write_card(options.out / "demo")
    print(f"held-out nats/byte: dense {figures['dense']['mean']:.4f}, healed {figures['healed']['mean']:.4f}")


if __name__ == "__main__":
    main()
