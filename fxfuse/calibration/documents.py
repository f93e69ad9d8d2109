"""Documents of text files and of JSON lines, read no further than they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fxfuse.errors import InputError

__all__ = ["Document", "document_of", "read_json_lines", "read_text"]

Document: TypeAlias = "str | bytes | list[int]"
"""Text, or token ids already. Bytes are a stretch of one text that goes on in the next."""

_STRETCH = 1 << 18
_FIELDS = ("input_ids", "text", "content", "messages")


def read_text(path: Path, _tokenizer: Any) -> Iterator[Document]:
    """One text, in stretches that end at line ends.

    Raises:
        InputError: It is no text.
    """
    with open(path, "rb") as file:
        while lines := file.readlines(_STRETCH):
            stretch = b"".join(lines)
            if path.suffix.lower() != ".txt":
                _check_is_text(path, stretch)
            yield stretch


def _check_is_text(path: Path, stretch: bytes) -> None:
    try:
        stretch.decode()
    except UnicodeDecodeError:
        raise InputError(
            f"{path} is of no known type: give .npy, .npz or .safetensors with token ids, or .txt, .jsonl or "
            "other text in UTF-8."
        ) from None


def read_json_lines(path: Path, tokenizer: Any) -> Iterator[Document]:
    """One document a line, or one for each element of a single array.

    Raises:
        InputError: A line is no JSON, or holds no text; names its number.
    """
    with open(path, encoding="utf-8") as file:
        try:
            yield from _documents(path, file, tokenizer)
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no text in UTF-8: write JSON lines.") from error


def _documents(path: Path, file: Any, tokenizer: Any) -> Iterator[Document]:
    start = file.read(1)
    while start.isspace():
        start = file.read(1)
    file.seek(0)
    if start == "[":
        for number, entry in enumerate(_parse(str(path), file.read()), 1):
            yield document_of(f"Element {number} of {path}", entry, tokenizer)
        return
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"Line {number} of {path}"
            yield document_of(where, _parse(where, line), tokenizer)


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is no JSON ({error.msg}): write one JSON object a line.") from error


def document_of(where: str, entry: Any, tokenizer: Any) -> Document:
    """The text of a record: its "text", "content" or "messages", or its "input_ids" as they are.

    Raises:
        InputError: It has none of them, or not of the right kind.
    """
    if isinstance(entry, str):
        return entry
    field = next((name for name in _FIELDS if name in entry), None) if isinstance(entry, Mapping) else None
    if field is None:
        raise InputError(f'{where} has no "text", "content", "messages" or "input_ids": add one of them.')
    value = entry[field]
    if field == "messages":
        return _conversation(where, value, tokenizer)
    if field == "input_ids":
        if not isinstance(value, Sequence) or not all(type(each) is int for each in value):
            raise InputError(f'{where} has "input_ids" that are no list of whole numbers.')
        return list(value)
    if not isinstance(value, str):
        raise InputError(f'{where} has "{field}" that is no text.')
    return value


def _conversation(where: str, messages: Any, tokenizer: Any) -> str:
    """The turns as the model's own template puts them, or joined by line ends without one."""
    try:
        if getattr(tokenizer, "chat_template", None):
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        return "".join(f"{_content(message['content'])}\n" for message in messages)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f'{where} has "messages" that are no list of turns with "content".') from error


def _content(content: Any) -> str:
    """The text of a turn, which may come in parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type", "text") == "text")
