"""Inputs drawn from a seed, by name, type and shape, for when a user gives none.

A decoder's inputs hang together: positions go on where the past ends, the mask covers the past and
the sequence, and a size that two inputs share by name is the same in both. Figures measured on such inputs
say so.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from .errors import InputError
from .lengths import Input, Lengths, name_sizes, read_lengths, shape_of
from .specs import InputSpec, is_float, is_int

__all__ = ["draw_inputs", "is_derived"]

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

FALLBACK_VOCAB = 256


def draw_inputs(
    specs: Sequence[InputSpec],
    seed: int,
    vocab_size: int | None = None,
    *,
    samples: int = 1,
    batch: int = 1,
    sequence: int = 64,
    past: int = 0,
) -> list[dict[str, Array]]:
    """Draw samples; the same seed gives the same values, whatever the order of the inputs.

    Args:
        specs: The model's inputs.
        seed: Where the random numbers start.
        vocab_size: Token ids are below it; None draws below 256.
        samples: How many to draw.
        batch: Rows, where the model leaves them open.
        sequence: Tokens in a row, where the model leaves them open.
        past: Tokens that a cache holds already, where the model leaves them open.

    Raises:
        InputError: An input holds a type that nothing can be drawn for.
    """
    known = [Input(spec, _kind_of(spec)) for spec in specs]
    lengths = read_lengths(known, Lengths(batch, sequence, past))
    sizes = name_sizes(known, lengths)
    return [
        {item.spec.name: _draw(item, lengths, sizes, (seed, index), vocab_size) for item in known}
        for index in range(samples)
    ]


# The first row that fits names an input's kind: what its name says, which types it may have.
_KINDS: tuple[tuple[str, str, Callable[[np.dtype[Any]], bool]], ...] = (
    ("flag off", r"cache", lambda dtype: dtype.kind == "b"),
    ("keep all", r"logits_to_keep|num_logits", is_int),
    ("past length", r"past\w*len", is_int),
    ("last index", r"seqlens_k", is_int),
    ("total length", r"total\w*len", is_int),
    ("length", r"seq\w*len|lengths?$", is_int),
    ("positions", r"pos(ition)?(s|_|$)", is_int),
    ("mask", r"mask", lambda dtype: True),
    ("zeros", r"token_type|segment", is_int),
    ("past", r"past|cache|(conv|ssm|recurrent)_state", lambda dtype: dtype.kind != "b"),
    ("tokens", r"", is_int),
    ("ones", r"", lambda dtype: dtype.kind == "b"),
    ("floats", r"", is_float),
)


def is_derived(spec: InputSpec) -> bool:
    """Whether an input follows from the others' sizes: a mask, positions, lengths, an empty cache."""
    return _kind_of(spec) not in ("tokens", "floats")


def _kind_of(spec: InputSpec) -> str:
    for kind, pattern, takes in _KINDS:
        if re.search(pattern, spec.name.lower()) and takes(spec.dtype):
            return kind
    raise InputError(f"No values can be drawn for the input {spec.name!r} of type {spec.dtype}: give inputs.")


def _draw(
    item: Input, lengths: Lengths, sizes: Mapping[str, int], seed: tuple[int, int], vocab_size: int | None
) -> Array:
    """Draw one input; its name is part of the seed, so that the others' values do not move with it."""
    rng = np.random.default_rng([*seed, zlib.crc32(item.spec.name.encode())])
    shape = shape_of(item, lengths, sizes)
    values = _values(item, shape, lengths, rng, vocab_size or FALLBACK_VOCAB)
    return np.ascontiguousarray(np.broadcast_to(values, shape)).astype(item.spec.dtype).reshape(shape)


def _values(
    item: Input, shape: tuple[int, ...], lengths: Lengths, rng: np.random.Generator, vocab_size: int
) -> Array:
    """Give values that broadcast to the shape."""
    if item.kind == "tokens":
        return rng.integers(0, min(vocab_size, np.iinfo(item.spec.dtype).max), shape)
    if item.kind == "floats":
        return rng.standard_normal(shape, np.float32)
    if item.kind == "positions":
        return lengths.past + np.arange(shape[-1] if shape else 1)
    if item.kind == "mask":
        # A float mask with a row for each position is added to the scores: zero lets everything through.
        return np.array(0 if is_float(item.spec.dtype) and len(shape) > 2 else 1)
    constants = {
        "ones": 1,
        "past length": lengths.past,
        "last index": lengths.total - 1,
        "total length": lengths.total,
        "length": lengths.sequence,
    }
    return np.array(constants.get(item.kind, 0))
