"""Held-out loss of whatever maps token ids to logits: a torch model, an ONNX Runtime session, a fused form.

python -m models.evaluate [--model demo] [--max-bytes 204800]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from models.checkpoint import DEMOS, load_demo
from models.corpus import held_out
from models.decoder import Decoder

__all__ = ["Evaluation", "Predict", "difference", "nats_per_byte", "predictor"]

Predict = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats per byte, its standard error over windows, the bytes, each window's loss."""

    mean: float
    standard_error: float
    tokens: int
    losses: tuple[float, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.standard_error:.4f} nats/byte on {self.tokens} bytes"


def _window_losses(predict: Predict, windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean loss of each window `[N, context + 1]`, whose every byte but the first is predicted."""
    logits = predict(np.ascontiguousarray(windows[:, :-1])).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, windows[:, 1:, None], axis=-1)[..., 0]
    return (np.log(np.exp(logits).sum(axis=-1)) - chosen).mean(axis=1)


def nats_per_byte(
    predict: Predict, data: NDArray[np.uint8], context: int = 256, batch: int = 16
) -> Evaluation:
    """Return the loss of `predict` over consecutive windows of `data`, none of which sees bytes before it.

    `predict` maps ids `[B, context]` to logits `[B, context, vocab]`. A last window that is not full is left
    out. Raises ValueError if `data` is shorter than one window.
    """
    count = (len(data) - 1) // context
    if count < 1:
        raise ValueError(f"{len(data)} bytes do not fill one window of {context + 1}")
    index = np.arange(count)[:, None] * context + np.arange(context + 1)
    windows = data.astype(np.int64)[index]
    losses = np.concatenate([_window_losses(predict, windows[i : i + batch]) for i in range(0, count, batch)])
    spread = float(losses.std(ddof=1) / count**0.5) if count > 1 else float("nan")
    return Evaluation(float(losses.mean()), spread, count * context, tuple(losses.tolist()))


def difference(one: Evaluation, other: Evaluation) -> tuple[float, float]:
    """Return how much more `other` loses on the same windows, in nats per byte, and its standard error."""
    paired = np.subtract(other.losses, one.losses)
    return float(paired.mean()), float(paired.std(ddof=1) / len(paired) ** 0.5)


def predictor(model: Decoder) -> Predict:
    """Return the model, in inference mode, as a function between numpy arrays."""

    def predict(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model.eval()(torch.from_numpy(ids)).float().numpy()
        return logits

    return predict


def main(arguments: list[str] | None = None) -> None:
    """Print the held-out loss of a demo model."""
    parser = argparse.ArgumentParser(description="Print the held-out loss of a demo model.")
    parser.add_argument("--model", choices=DEMOS, default="demo")
    parser.add_argument("--max-bytes", type=int, default=204_800)
    options = parser.parse_args(arguments)
    print(
        f"{options.model}: {nats_per_byte(predictor(load_demo(options.model)), held_out(options.max_bytes))}"
    )


if __name__ == "__main__":
    main()
