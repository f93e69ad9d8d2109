"""What the answers must be: float64 on the device, with one layer's copy at a time."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.decoder import Decoder
from tools.benchmark.subjects import draw_input

__all__ = ["Reference", "answers", "layers_of", "write_references"]

_LARGE = 1 << 20
"""Answers of more values than that are kept in float32."""


class Reference:
    """One case: its input, and its answers, sequential, with every chain in parallel and without the FFNs."""

    TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2, "int8": 0.15, "int4": 0.4}
    """Relative errors above these are mistakes: rounding through a few dozen layers stays below."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.input = arrays["input"]
            self._answers = {form: arrays[form] for form in arrays.files if form != "input"}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an answer."""
        return tuple(self._answers["sequential"].shape)

    def add(self, form: str, answer: NDArray[Any]) -> str:
        """Hold an answer of another form as well; returns its name."""
        self._answers[form] = answer
        return form

    def check(self, answer: NDArray[np.float64], form: str, kind: str) -> float:
        """The relative error of an answer; `kind` is the type or the weights' kind.

        Raises:
            ValueError: It is too large, as it is for NaN and zeros.
        """
        expected = self._answers[form].astype(np.float64)
        answer = answer.reshape(expected.shape)
        error = float(np.linalg.norm(answer - expected) / np.linalg.norm(expected))
        if not error <= self.TOLERANCE[kind]:
            raise ValueError(f"wrong answer: relative error {error:.1e} against float64")
        return error


def write_references(model: nn.Module, lengths: Sequence[int], folder: Path) -> None:
    """Write `TOKENS.npz` for each length; the weights are as each contestant has them."""
    inputs = [draw_input(model, tokens) for tokens in lengths]
    for x, found in zip(inputs, answers(model, inputs), strict=True):
        kind = np.float32 if next(iter(found.values())).numel() > _LARGE else np.float64
        arrays = {form: value.cpu().numpy().astype(kind) for form, value in found.items()}
        np.savez(folder / f"{x.shape[1]}.npz", input=x.numpy(), **arrays)


@torch.no_grad()
def answers(
    model: nn.Module, inputs: Sequence[Tensor], groups: Sequence[Sequence[int]] | None = None
) -> list[dict[str, Tensor]]:
    """The answers to each input in float64 by form: "sequential", "parallel", and "bound" of a decoder.

    In parallel are all FFNs of each chain, or the layers of each of `groups`.
    """
    device = next(model.parameters()).device
    streams = [_start(model, x.to(device)) for x in inputs]
    tables = [_rotary(model, x.shape[1], device) for x in inputs]
    chains = model.config.ffn_chains() if isinstance(model, Decoder) else [range(len(model.layers))]
    within = {index for chain in chains for index in chain}
    parallel = chains if groups is None else groups
    inside = {index for group in parallel for index in list(group)[1:]}
    for index, layer in enumerate(model.layers):
        exact = copy.deepcopy(layer).double()
        for stream, table in zip(streams, tables, strict=True):
            _step(exact, stream, table, index not in inside, index in within)
        del exact
    return [_finish(model, stream) for stream in streams]


def _step(
    layer: nn.Module,
    stream: dict[str, Tensor],
    table: tuple[Tensor, Tensor] | None,
    opens: bool,
    chained: bool,
) -> None:
    """Take each form's stream through one layer; in parallel, a chain's FFNs read the stream at its start."""
    if layer.self_attn is not None and table is not None:
        for form in ("sequential", "parallel", "bound"):
            stream[form] = stream[form] + layer.self_attn(layer.input_layernorm(stream[form]), *table)
    if opens:
        stream["base"] = stream["parallel"]

    def ffn(x: Tensor) -> Tensor:
        return layer.mlp(layer.post_attention_layernorm(x))

    stream["sequential"] = stream["sequential"] + ffn(stream["sequential"])
    stream["parallel"] = stream["parallel"] + ffn(stream["base"])
    if not chained:
        stream["bound"] = stream["bound"] + ffn(stream["bound"])


def _start(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    stream = model.embed_tokens(x).double() if isinstance(model, Decoder) else x.double()
    return dict.fromkeys(("sequential", "parallel", "bound", "base"), stream)


def _rotary(model: nn.Module, length: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    return model.rotary(length, device) if isinstance(model, Decoder) else None


def _finish(model: nn.Module, stream: dict[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(model, Decoder):
        return {form: stream[form] for form in ("sequential", "parallel")}
    norm, head = (copy.deepcopy(part).double() for part in (model.norm, model.lm_head))
    return {form: head(norm(stream[form])) for form in ("sequential", "parallel", "bound")}


def layers_of(groups: Sequence[Any]) -> list[list[int]]:
    """The layers of each group of a report, read off the names of its blocks ("layers.3.mlp").

    Raises:
        ValueError: A name has no layer.
    """
    found = []
    for group in groups:
        numbers = [re.search(r"layers\.(\d+)", str(block)) for block in group.blocks]
        if not all(numbers):
            raise ValueError(f"a block of {', '.join(map(str, group.blocks))} names no layer")
        found.append(sorted(int(number.group(1)) for number in numbers if number))
    return found
