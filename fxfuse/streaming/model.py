"""A checkpoint's decoder as a row of updates of the residual stream, of which one at a time is in memory.

    embedding rows -> x_0;    x_(p+1) = x_p + m branch_p(norm_p(x_p));    head(norm(x_n)) -> logits

An update is the attention or the FFN of a layer. Of the embedding only the rows of the tokens are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from fxfuse.analysis.records import ChainFacts, ModelId
from fxfuse.checkpoints.records import Checkpoint
from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch
from fxfuse.loading.configs import dtype_of
from fxfuse.sessions import Provider
from fxfuse.streaming.shell import Shell, emptied, filled

__all__ = ["Branch", "DiskModel", "DiskUpdate", "Loaded", "check_batch", "device_for"]

Branch: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""What an update adds to a stream [windows, context, hidden] of the batch at hand."""

_TAKEN = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True)
class DiskUpdate:
    """An update of the stream; `kind` is "attention" or "ffn", `name` the path of its module."""

    kind: str
    layer: int
    name: str


def check_batch(batch: Batch) -> None:
    """Hold a batch against what a decoder of a checkpoint takes.

    Raises:
        InputError: It has no token ids, or something else.
    """
    other = next((name for name in batch if name not in _TAKEN), None)
    if other is not None:
        raise InputError(
            f"A checkpoint is run on {', '.join(_TAKEN)}, and the data hold {other}: leave it out of them."
        )
    if "input_ids" not in batch:
        raise InputError("A checkpoint is run on token ids, and the data hold none: call them input_ids.")


def device_for(provider: Provider) -> torch.device:
    """The device that a provider stands for; "auto" is the first graphics processor where there is one.

    Raises:
        InputError: "cuda" is asked for, and there is none.
    """
    if provider == "cuda" and not torch.cuda.is_available():
        raise InputError("torch sees no CUDA device here: take provider auto or cpu.")
    return torch.device("cuda" if provider != "cpu" and torch.cuda.is_available() else "cpu")


class DiskModel:
    """The decoder of `checkpoint`, computed in the type that its config names, on `device`."""

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device = "cpu") -> None:
        self.checkpoint, self.tensors, self.family = checkpoint, checkpoint.tensors, checkpoint.family
        self.device, self.dtype = torch.device(device), dtype_of(checkpoint, None)
        self.hidden_size = checkpoint.hidden_size
        self.updates = tuple(self._updates())
        base = self.family.layers.rpartition(".")[0]
        self._table, self._norm = f"{base}.embed_tokens.weight", f"{base}.norm.weight"
        self._head = "lm_head.weight" if "lm_head.weight" in self.tensors else self._table
        self.vocab_size = self.tensors[self._table].shape[0]
        self._shell = Shell(checkpoint, self.dtype, self.device)

    @property
    def chains(self) -> list[list[int]]:
        """The maximal runs of two FFNs or more, as places among the updates."""
        runs: list[list[int]] = [[]]
        for place, update in enumerate(self.updates):
            if update.kind == "ffn":
                runs[-1].append(place)
            else:
                runs.append([])
        return [run for run in runs if len(run) > 1]

    @property
    def id(self) -> ModelId:
        """What tells it from other models."""
        blocks = [update for update in self.updates if update.kind == "ffn"]
        return ModelId(self.hidden_size, tuple((each.name, self.width(each)) for each in blocks))

    def width(self, update: DiskUpdate) -> int:
        """The intermediate size of an FFN."""
        return self.checkpoint.layers[update.layer].intermediate_size

    def facts(self, chain: Sequence[int]) -> ChainFacts:
        """Names, widths and bytes of a chain's blocks."""
        blocks = [self.updates[place] for place in chain]
        names = tuple(each.name for each in blocks)
        return ChainFacts(names, tuple(map(self.width, blocks)), tuple(map(self._bytes, blocks)))

    @torch.no_grad()
    def embedded(self, batch: Batch) -> torch.Tensor:
        """The stream before the first update."""
        ids, places = torch.unique(batch["input_ids"], return_inverse=True)
        stretches = _stretches(ids.tolist())
        rows = torch.cat([self.tensors.read(self._table, start, stop) for start, stop in stretches])
        return self._shell.first_stream(self._placed(rows), places.to(self.device))

    @contextlib.contextmanager
    def loaded(self, place: int) -> Iterator[Loaded]:
        """The update at a place, with its weights in memory while the context lasts."""
        update = self.updates[place]
        layer = self._shell.layers[update.layer]
        names = self._modules(update)
        norm, module = (layer.get_submodule(name) for name in names)
        for name, each in zip(names, (norm, module), strict=True):
            self._fill(each, f"{self.checkpoint.prefix(update.layer)}.{name}")
        try:
            yield Loaded(update, norm, module, self._shell, float(getattr(layer, "residual_multiplier", 1.0)))
        finally:
            emptied(norm)
            emptied(module)

    @contextlib.contextmanager
    def head(self) -> Iterator[Branch]:
        """What gives the logits of a last stream, with the head in memory while the context lasts."""
        norm, head = (self._placed(self.tensors.read(name)) for name in (self._norm, self._head))
        self._shell.set_head(norm, head)
        try:
            yield torch.no_grad()(self._shell.logits)
        finally:
            self._shell.set_head(norm, head[:0].clone())

    @property
    def _ffn(self) -> str:
        return self.family.down.rpartition(".")[0]

    def _updates(self) -> Iterator[DiskUpdate]:
        for layer in self.checkpoint.layers:
            prefix = self.checkpoint.prefix(layer.number)
            if layer.attention:
                yield DiskUpdate("attention", layer.number, f"{prefix}.{self.family.attention}")
            if layer.ffn:
                yield DiskUpdate("ffn", layer.number, f"{prefix}.{self._ffn}")

    def _modules(self, update: DiskUpdate) -> tuple[str, str]:
        """The names of an update's norm and of what follows it, within its layer."""
        if update.kind == "attention":
            return self.family.attention_norm, self.family.attention
        return self.family.norm, self._ffn

    def _bytes(self, update: DiskUpdate) -> int:
        """Bytes of an FFN's matrices."""
        prefix = self.checkpoint.prefix(update.layer)
        return sum(self.tensors[f"{prefix}.{name}.weight"].nbytes for name in self.family.ffn_weights)

    def _fill(self, module: nn.Module, prefix: str) -> None:
        names = [name for name, _ in module.named_parameters()]
        filled(module, {name: self._placed(self.tensors.read(f"{prefix}.{name}")) for name in names})

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, self.dtype)


@dataclass(frozen=True)
class Loaded:
    """An update whose weights are in memory; `shell` tells an attention its masks and positions."""

    update: DiskUpdate
    norm: nn.Module
    module: nn.Module
    shell: Shell
    multiplier: float

    @torch.no_grad()
    def on(self, batch: Batch) -> Branch:
        """The branch on streams of this batch."""
        placed = {name: tensor.to(self.shell.device) for name, tensor in batch.items()}
        is_attention = self.update.kind == "attention"
        arguments = self.shell.arguments(placed, self.update.layer) if is_attention else {}

        @torch.no_grad()
        def branch(x: torch.Tensor) -> torch.Tensor:
            given = self.module(self.norm(x), **arguments)
            found: torch.Tensor = given[0] if isinstance(given, tuple) else given
            return found if self.multiplier == 1.0 else found * self.multiplier

        return branch


def _stretches(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers of an ordered list, as [start, stop)."""
    start = before = ids[0]
    for each in ids[1:]:
        if each != before + 1:
            yield start, before + 1
            start = each
        before = each
    yield start, before + 1
