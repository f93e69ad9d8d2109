"""Copies of protobuf messages, field by field."""

from __future__ import annotations

from typing import Any

__all__ = ["copy_fields"]


def copy_fields(source: Any, target: Any, without: tuple[str, ...] = ()) -> None:
    """Copy every field of one message that is set into another, except for those named."""
    for descriptor, value in source.ListFields():
        name = descriptor.name
        if name in without:
            continue
        if isinstance(value, (str, bytes, int, float)):
            setattr(target, name, value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, name).CopyFrom(value)
        else:
            getattr(target, name).extend(value)
