"""Fit a decoder to bytes on a CPU, with Muon and AdamW, in bfloat16 autocast."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.decoder import Decoder
from models.muon import Muon

__all__ = ["Recipe", "fit", "initialise"]

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
        if name.endswith(("o_proj.weight", "down_proj.weight", ".bias")):
            nn.init.zeros_(weight)
        elif weight.ndim == 2:
            std = weight.shape[1] ** -0.5 if name.startswith("layers.") else 0.02
            nn.init.normal_(weight, std=std, generator=generator)
    return model


def make_optimizers(model: Decoder, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Give Muon the matrices inside the layers, in two halves, and AdamW everything else."""
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

    Whole shares let the threads meet once a step. Threads inside each product meet a thousand times, and wait
    for the slowest whenever something else wants a core. Fixed shares, summed in order, are reproducible.
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
