"""Iterables of batches, as a DataLoader or a data set gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxfuse.calibration.arrays import drop_labels
from fxfuse.calibration.batches import IDS, as_tensor, is_whole, tokens_of
from fxfuse.calibration.documents import document_of
from fxfuse.calibration.found import Found, Wishes
from fxfuse.calibration.text import from_documents
from fxfuse.calibration.windows import joined
from fxfuse.errors import InputError
from fxfuse.progress import Progress, track

__all__ = ["read_iterable"]

_WORDS = ("text", "content", "messages")


def read_iterable(source: Iterable[Any], wishes: Wishes, progress: Progress) -> Found:
    """Batches of tensors, tuples or dicts, single windows, or texts; read no further than `max_tokens`.

    Batches that differ only in their number of windows are divided window by window, others stay whole.

    Raises:
        InputError: An item is none of these, or the items differ in their inputs.
    """
    where, name = "The calibration data", type(source).__name__
    items = iter(source)
    first = next(items, None)
    if first is None:
        raise InputError(f"{where} is empty: give at least two batches.")
    items = chain([first], items)
    if _is_text(first):
        texts = (document_of(f"Item {index}", each, wishes.tokenizer) for index, each in enumerate(items))
        found = from_documents(where, texts, wishes, progress)
        return Found(found.where, name, found.rows)
    total = len(source) if isinstance(source, Sized) and wishes.max_tokens is None else None
    batches, singles, notes = _read(track(items, "reading batches", progress, total=total), wishes)
    rows = joined(batches)
    if rows is None and singles:
        raise InputError(
            f"{where} holds single windows of differing lengths: pad them into batches, or give one stream."
        )
    if rows is None:
        if len(batches) > 2 and tokens_of(batches) > (wishes.max_tokens or tokens_of(batches)):
            batches.pop()
        return Found(where, name, None, batches, notes=notes)
    size = wishes.batch_size if singles else max(len(next(iter(batch.values()))) for batch in batches)
    return Found(where, name, rows, batch_size=size, notes=notes)


def _read(items: Iterator[Any], wishes: Wishes) -> tuple[list[dict[str, Tensor]], bool, tuple[str, ...]]:
    """The batches, whether they are single windows, and notes."""
    batches: list[dict[str, Tensor]] = []
    count, singles = 0, False
    notes: tuple[str, ...] = ()
    for index, item in enumerate(items):
        named, noted = _named(f"Batch {index} of the calibration data", item)
        notes = notes or noted
        single = all(tensor.dim() < 2 for tensor in named.values()) and any(map(is_whole, named.values()))
        batch = {name: tensor[None] for name, tensor in named.items()} if single else named
        if batches and list(batch) != list(batches[0]):
            raise InputError(
                f"Batch {index} of the calibration data holds the inputs {', '.join(batch)} where batch 0 "
                f"holds {', '.join(batches[0])}: give the same in each."
            )
        singles = singles or single
        count += tokens_of([batch])
        batches.append(batch)
        if wishes.max_tokens is not None and count >= wishes.max_tokens and len(batches) > 1:
            break
    return batches, singles, notes


def _is_text(item: Any) -> bool:
    """Whether an item is a text, or a record that holds one and no ids."""
    if isinstance(item, Mapping):
        return IDS not in item and any(isinstance(item.get(name), (str, list)) for name in _WORDS)
    return isinstance(item, str)


def _named(where: str, item: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of one item by input name."""
    if isinstance(item, Mapping):
        kept, notes = drop_labels({name: each for name, each in item.items() if each is not None})
        texts = [name for name, each in kept.items() if _is_words(each)]
        if texts:
            notes = (*notes, f"{', '.join(texts)} was left out: it holds text.")
        tensors = {
            name: _tensor(f"{name!r} of {where}", each) for name, each in kept.items() if name not in texts
        }
        if not tensors:
            raise InputError(f"{where} holds no tensors: give token ids as {IDS}.")
        return _ids_as_int64(tensors), notes
    if isinstance(item, (list, tuple)) and any(isinstance(each, (Tensor, np.ndarray)) for each in item):
        values = [_tensor(where, each) for each in item]
    else:
        values = [_tensor(where, item)]
    if len(values) == 1 and is_whole(values[0]):
        return _ids_as_int64({IDS: values[0]}), ()
    return {str(place): each for place, each in enumerate(values)}, ()


def _ids_as_int64(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ids as embeddings take them, whatever type they were saved in."""
    if IDS in tensors and is_whole(tensors[IDS]):
        tensors[IDS] = tensors[IDS].to(torch.int64)
    return tensors


def _is_words(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[0], str))


def _tensor(where: str, value: Any) -> Tensor:
    try:
        return as_tensor(value)
    except (TypeError, ValueError) as error:
        if isinstance(value, (list, tuple)) and any(isinstance(each, (list, tuple)) for each in value):
            raise InputError(f"{where} has ragged rows: pad them to one length.") from error
        raise InputError(
            f"{where} is a {type(value).__name__}: give tensors, tuples or dicts of them, or texts."
        ) from error
