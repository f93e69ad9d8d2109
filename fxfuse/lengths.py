"""Sizes of drawn inputs: what each axis is by its name or its place, and the lengths that inputs share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .specs import Dim, InputSpec, dim_names, dim_size

__all__ = ["Input", "Lengths", "name_sizes", "read_lengths", "shape_of"]

Role: TypeAlias = "str | None"

IMAGE_SIZE = 224


@dataclass(frozen=True)
class Lengths:
    """The sizes that a decoder's inputs have in common."""

    batch: int
    sequence: int
    past: int

    @property
    def total(self) -> int:
        """Positions that the attention sees."""
        return self.past + self.sequence


@dataclass(frozen=True)
class Input:
    """A model's input and what kind of values it takes."""

    spec: InputSpec
    kind: str

    @property
    def axes(self) -> list[tuple[Role, Dim]]:
        """Give each axis's role by its place, and its size; the hidden size and its like have no role."""
        rank = len(self.spec.shape)
        places = _PLACES.get((self.kind, rank), _PLACES.get((self.kind, None), ()))
        return list(zip([*places, *[None] * rank], self.spec.shape, strict=False))


# What the axes are, by kind and rank; the row without a rank is for the other ranks.
_PLACES: dict[tuple[str, int | None], tuple[Role, ...]] = {
    ("tokens", 1): ("sequence",),
    ("tokens", 4): ("batch", "channels", "image", "image"),
    ("tokens", None): ("batch", "sequence"),
    ("zeros", None): ("batch", "sequence"),
    ("positions", 1): ("sequence",),
    ("positions", 2): ("batch", "sequence"),
    ("positions", 3): (None, "batch", "sequence"),
    ("mask", 1): ("total",),
    ("mask", 2): ("batch", "total"),
    ("mask", 3): ("batch", "sequence", "total"),
    ("mask", 4): ("batch", None, "sequence", "total"),
    ("past", 4): ("batch", None, "past"),
    ("past", None): ("batch", "past"),
    ("floats", 1): ("sequence",),
    ("floats", 2): ("sequence",),
    ("floats", 3): ("batch", "sequence"),
    ("floats", 4): ("batch", "channels", "image", "image"),
    ("floats", 5): ("batch", None, "channels", "image", "image"),
    ("last index", None): ("batch",),
}

# What an open size's own name says: the first row that fits.
_ROLE_NAMES = (
    ("total", r"total|plus"),
    ("past", r"past|cache"),
    ("batch", r"batch|^bs?$"),
    ("channels", r"channel"),
    ("image", r"height|width|image"),
    ("sequence", r"seq|len|token|time"),
)


def read_lengths(known: Sequence[Input], asked: Lengths) -> Lengths:
    """Take over the sizes that the model fixes; a mask's fixed size is that of past and sequence together."""
    leading = "tokens" if any(item.kind == "tokens" for item in known) else "floats"
    tells = {"sequence": leading, "past": "past", "total": "mask"}
    fixed: dict[Role, int] = {}
    for item in known:
        for role, dim in item.axes:
            # An encoder's states have a length of their own.
            own = re.search(r"encoder|cross", item.spec.name) and role != "batch"
            if isinstance(dim, int) and not own and tells.get(str(role), item.kind) == item.kind:
                fixed.setdefault(role, dim)
    past, total = fixed.get("past", asked.past), fixed.get("total")
    sequence = fixed.get("sequence", asked.sequence)
    if total is not None and "sequence" not in fixed:
        sequence = max(min(sequence, total - past), 1)
    if total is not None and "past" not in fixed:
        past = max(total - sequence, 0)
    return Lengths(fixed.get("batch", asked.batch), sequence, past)


def name_sizes(known: Sequence[Input], lengths: Lengths) -> dict[str, int]:
    """Give every named size a number: by its name, else by its place in the first input that has it."""
    order = ["tokens", "positions", "floats", "past"]
    sizes: dict[str, int] = {}
    for item in sorted(known, key=lambda item: [*order, item.kind].index(item.kind)):
        for role, dim in item.axes:
            for name in dim_names(dim):
                # Where "s1 + s2" covers a sequence s1, the other is the past.
                place = role if name == dim else "past"
                sizes.setdefault(name, _size_of(_role_of(name) or place, lengths))
    return sizes


def _role_of(name: str) -> Role:
    return next((role for role, pattern in _ROLE_NAMES if re.search(pattern, name.lower())), None)


def _size_of(role: Role, lengths: Lengths) -> int:
    fixed = {None: 1, "channels": 3, "image": IMAGE_SIZE}
    return fixed[role] if role in fixed else int(getattr(lengths, str(role)))


def shape_of(item: Input, lengths: Lengths, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Fill in the sizes that the model leaves open."""
    found = [(role, dim_size(dim, sizes)) for role, dim in item.axes]
    return tuple(_size_of(role, lengths) if size is None else max(size, 0) for role, size in found)
