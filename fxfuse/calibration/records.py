"""Calibration data: batches to fit on, batches held out, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fxfuse.calibration.batches import tokens_of
from fxfuse.calibration.complete import complete, fixed_sizes
from fxfuse.calibration.dividing import divide
from fxfuse.calibration.found import Wishes
from fxfuse.calibration.vocabulary import check_vocabulary
from fxfuse.calibration.windows import batched, joined, refilled, shorten
from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch
from fxfuse.progress import Progress, silent
from fxfuse.specs import InputSpec

__all__ = ["Calibration"]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Inputs of a model, divided into a part that is fitted on and a part that judges.

    Batches are dicts of tensors by input name; token ids are called "input_ids", [windows, context] of int64.
    `Calibration.of` makes one of whatever data there are.
    """

    fit: tuple[Batch, ...]
    held_out: tuple[Batch, ...]
    source: str = ""
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the part that is fitted on, without padding."""
        return tokens_of(self.fit)

    @property
    def held_out_tokens(self) -> int:
        """Tokens of the part held out, without padding."""
        return tokens_of(self.held_out)

    @property
    def batches(self) -> tuple[Batch, ...]:
        """All batches: those to fit on, then those held out."""
        return (*self.fit, *self.held_out)

    @classmethod
    def of(
        cls,
        source: Any,
        *,
        tokenizer: Any = None,
        context: int = 256,
        max_tokens: int | None = None,
        batch_size: int = 8,
        held_out: float = 0.2,
        seed: int = 0,
        vocab_size: int | None = None,
        progress: Progress = silent,
    ) -> Calibration:
        """Read calibration data and divide them.

        Streams (text, 1-D ids) are cut into windows of `context` tokens that do not overlap; windows are put
        into an order drawn from `seed`, repeated ones are left out, and the last share is held out. Batches
        of differing shapes stay as they are, and whole ones are held out.

        Args:
            source: A path (.npy, .npz, .safetensors, .txt or other text, .jsonl, .json), an array or tensor
                of token ids, a dict of arrays by input name, or an iterable such as a DataLoader of tensors,
                tuples or dicts, or of texts. A Calibration is returned as it is.
            tokenizer: For text: "bytes", a tokenizer of transformers or where it lies, or a function from
                text to token ids.
            context: Tokens in a window.
            max_tokens: Read at most so many, both parts together; None reads all.
            batch_size: Windows in a batch, where the source has no batches.
            held_out: Which share is held out, at least one window.
            seed: Where the order of windows starts.
            vocab_size: Token ids must be below it, where given.
            progress: Called with a short text at every step.

        Raises:
            InputError: The data cannot be read, are empty or too few, or hold what no model can take.
        """
        if isinstance(source, Calibration):
            return source
        wishes = Wishes(tokenizer, context, max_tokens, batch_size, held_out, seed)
        divided = divide(source, wishes, progress)
        found = cls(divided.fit, divided.held_out, divided.source, seed, divided.notes)
        if vocab_size is not None:
            check_vocabulary(found, vocab_size)
        return found

    def limit(self, tokens: int) -> Calibration:
        """The same data with at most `tokens` to fit on; windows are cut shorter where that takes fewer.

        The part held out stays as it is.

        Raises:
            InputError: Not one window of so few tokens can be made.
        """
        if tokens < 1:
            raise InputError(f"At least one token is needed to fit on, not {tokens}.")
        if tokens >= self.tokens:
            return self
        rows = joined(self.fit)
        if rows is None:
            return replace(self, fit=_first(self.fit, tokens))
        count = len(next(iter(rows.values())))
        short = shorten(rows, tokens, least=min(2, count, tokens))
        return replace(self, fit=batched(short, len(next(iter(self.fit[0].values())))))

    def completed(self, specs: Sequence[InputSpec]) -> Calibration:
        """The same data with every input of the model that `specs` lists; see `complete`.

        Where the model fixes the number of windows in a batch, batches take it, and windows that fill none
        are left out with a note.

        Raises:
            InputError: The data do not fit the model's inputs.
        """
        count, _ = fixed_sizes(specs)
        parts, notes = [], self.notes
        for part in (self.fit, self.held_out):
            full, over = (part, 0) if count is None else refilled(part, count)
            parts.append(tuple(complete(batch, specs) for batch in full))
            notes += (f"{over} windows that fill no batch of {count} were left out.",) if over else ()
        return replace(self, fit=parts[0], held_out=parts[1], notes=notes)

    def to(self, device: torch.device | str) -> Calibration:
        """The same data on a device."""
        fit, held_out = (
            tuple({name: tensor.to(device) for name, tensor in batch.items()} for batch in part)
            for part in (self.fit, self.held_out)
        )
        return replace(self, fit=fit, held_out=held_out)


def _first(batches: Sequence[Batch], tokens: int) -> tuple[Batch, ...]:
    """As many whole batches as `tokens` allow."""
    kept: list[Batch] = []
    left = tokens
    for batch in batches:
        left -= tokens_of([batch])
        if left < 0:
            break
        kept.append(batch)
    if not kept:
        raise InputError(
            f"The first batch alone has {tokens_of(batches[:1])} tokens where {tokens} are asked for: give "
            "smaller batches, or ask for more tokens."
        )
    return tuple(kept)
