"""Text to token ids: bytes, a tokenizer of transformers, or the user's own function."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxfuse.calibration.batches import IDS
from fxfuse.calibration.documents import Document
from fxfuse.calibration.found import Found, Wishes
from fxfuse.calibration.windows import cut_stream
from fxfuse.errors import InputError
from fxfuse.progress import Progress, track

__all__ = ["Tokenizer", "from_documents", "load_tokenizer"]


@dataclass(frozen=True)
class Tokenizer:
    """Gives the ids of a text.

    A text in several documents is joined with `end` after each; windows start with `begin` where the model's
    texts do.
    """

    encode: Callable[[bytes | str], list[int]]
    begin: int | None = None
    end: int | None = None


def load_tokenizer(given: Any) -> Tokenizer:
    """Make a tokenizer of "bytes", a tokenizer of transformers or where it lies, or a function.

    Raises:
        InputError: It is none of these, cannot be loaded, or transformers is not there.
    """
    if given is None:
        raise InputError(
            'Text needs a tokenizer: give one of transformers, its folder, or "bytes" (--tokenizer).'
        )
    if given == "bytes":
        return Tokenizer(lambda text: list(text.encode() if isinstance(text, str) else text), end=0)
    if isinstance(given, (str, os.PathLike)):
        given = _pretrained(os.fspath(given))
    if hasattr(given, "encode") and hasattr(given, "eos_token_id"):
        return _of_transformers(given)
    if callable(given):
        return Tokenizer(lambda text: _checked(given(_decoded(text))))
    raise InputError(
        f'A tokenizer must be one of transformers, a function from text to token ids or "bytes", not '
        f"{type(given).__name__}."
    )


def _pretrained(name: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise InputError(
            f"The tokenizer {name} needs the package transformers: install it with pip install transformers."
        ) from error
    if os.path.isfile(name):
        raise InputError(f"The tokenizer {name} is a file: give the folder that it lies in.")
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises many kinds
        first = (
            str(error).strip().splitlines()[0].rstrip(".:") if str(error).strip() else type(error).__name__
        )
        raise InputError(f"The tokenizer {name} cannot be loaded ({first}): give its folder.") from error


def _of_transformers(tokenizer: Any) -> Tokenizer:
    """Ids without special tokens, which are put where the model's texts have them."""
    begin = tokenizer.bos_token_id
    own = tokenizer.encode("a")
    starts = begin is not None and bool(own) and own[0] == begin
    return Tokenizer(
        lambda text: _checked(tokenizer.encode(_decoded(text), add_special_tokens=False, verbose=False)),
        begin if starts else None,
        tokenizer.eos_token_id,
    )


def _decoded(text: bytes | str) -> str:
    if isinstance(text, str):
        return text
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"The text is not in UTF-8 (byte {text[error.start]:#x}): convert it.") from error


def _checked(ids: Any) -> list[int]:
    try:
        array = np.asarray(ids)
    except ValueError:
        array = np.empty((0, 0))
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise InputError("The tokenizer must give a list of token ids for a text: check what it returns.")
    return [int(each) for each in array]


def from_documents(where: str, documents: Iterable[Document], wishes: Wishes, progress: Progress) -> Found:
    """Windows of the stream that the documents make; read no further than `max_tokens`.

    Raises:
        InputError: Text without a tokenizer, or too little of it.
    """
    tokenizer: Tokenizer | None = None
    stream: list[np.ndarray[Any, Any]] = []
    count = 0
    for document in track(documents, "tokenizing", progress):
        if isinstance(document, list):
            ids = document
        else:
            tokenizer = tokenizer or load_tokenizer(wishes.tokenizer)
            ids = tokenizer.encode(document)
            if isinstance(document, str) and tokenizer.end is not None:
                ids = [*ids, tokenizer.end]
        stream.append(np.asarray(ids, np.int64))
        count += len(ids)
        if wishes.max_tokens is not None and count >= wishes.max_tokens:
            break
    joined = np.concatenate(stream) if stream else np.empty(0, np.int64)
    begin = tokenizer.begin if tokenizer is not None else None
    return Found(where, where, {IDS: cut_stream(where, joined[: wishes.max_tokens], wishes.length, begin)})
